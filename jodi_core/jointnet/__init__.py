"""JointNet: a picture and one dense map of it, by two U-Nets that exchange features (ICLR 2024, arXiv 2310.06347)."""

"""The toy world: pictures with exact labels and captions, by the thousand."""

from training.scene import Scene, Thing, sample_scene

__all__ = ["Scene", "Thing", "sample_scene"]

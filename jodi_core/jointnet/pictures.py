"""What the autoencoder makes of JointNet's latents, as pictures (spec 1.9)."""

import torch

IN_COLOUR = ("image", "normal")    # any other map is grey


def finish(domain: str, picture_B3HW: torch.Tensor) -> torch.Tensor:
    """A decoded picture (B, 3, H, W) in [-1, 1] -> float32 in [0, 1], clamped; of a grey map the first channel alone.

    Depth is inverse depth, the nearest bright, and keeps the range that it was painted in.
    """
    picture_B3HW = (picture_B3HW.float() / 2 + 0.5).clamp(0, 1)
    return picture_B3HW if domain in IN_COLOUR else picture_B3HW[:, :1].expand(-1, 3, -1, -1)

"""What the autoencoder makes of JointNet's latents, as pictures (spec 1.9)."""

import torch

IN_COLOUR = ("image", "normal")    # any other map is grey


def finish(domain: str, picture_B3HW: torch.Tensor) -> torch.Tensor:
    """A decoded picture (B, 3, H, W) in [-1, 1] -> float32 in [0, 1], clamped; of a grey map the first channel alone.

    Depth is inverse depth, the nearest bright, and keeps the range that it was painted in.
    """
    picture_B3HW = (picture_B3HW.float() / 2 + 0.5).clamp(0, 1)
    return picture_B3HW if domain in IN_COLOUR else picture_B3HW[:, :1].expand(-1, 3, -1, -1)


def stretched(picture_B3HW: torch.Tensor) -> torch.Tensor:
    """A grey map in [0, 1] with its 1 % and 99 % quantiles, of each sample, at 0 and 1; what lies beyond is cut."""
    sorted_BN = picture_B3HW[:, 0].flatten(1).sort(dim=1).values    # quantile itself takes no pictures above 4096^2
    low_B111, high_B111 = (_at(sorted_BN, share)[:, None, None, None] for share in (0.01, 0.99))
    return ((picture_B3HW - low_B111) / (high_B111 - low_B111).clamp_min(1e-6)).clamp(0, 1)


def _at(sorted_BN: torch.Tensor, share: float) -> torch.Tensor:
    """(B,) quantiles by linear interpolation."""
    place = share * (sorted_BN.shape[1] - 1)
    return torch.lerp(sorted_BN[:, int(place)], sorted_BN[:, min(int(place) + 1, sorted_BN.shape[1] - 1)], place % 1)

"""How a picture comes to the network: a square, in [-1, 1] (spec 6.1 and 7.5)."""

from collections.abc import Callable

import torch
from PIL import Image

from ..fitting import CROP, Fit, resize
from ..pictures import fit_for_training, load_picture, to_pil, to_rgb

TRAINED_SIDE = 512    # pixels; of the published models


def look_square(picture_B3HW: torch.Tensor, side: int, mode: str = CROP) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 3, side, side) in [-1, 1], as a picture is read for captions and questions.

    mode: see `fitting.Fit`; the published one, `crop`, is bicubic on 8-bit pixels. ValueError if too elongated.
    """
    size = side, side
    if mode == CROP:
        return torch.stack([fit_for_training(to_pil(picture), size) for picture in picture_B3HW])
    return Fit(mode, tuple(picture_B3HW.shape[-2:]), size).apply(picture_B3HW * 2 - 1)


def shard_square(picture: Image.Image, side: int) -> torch.Tensor:
    """(3, side, side) in [-1, 1], as pictures of shards were read in training; those of metadata lists were read as by
    `pictures.fit_for_training`."""
    square = _central(to_rgb(picture), lambda rest: rest // 2)
    return load_picture(square.resize((side, side), Image.Resampling.LANCZOS))[0] * 2 - 1


def tuning_square(picture: Image.Image, side: int) -> torch.Tensor:
    """(3, side, side) in [-1, 1], as pictures of questions and answers were read in training."""
    square = _central(to_rgb(picture), lambda rest: round(rest / 2))
    return resize(load_picture(square) * 2 - 1, (side, side))[0]


def _central(picture: Image.Image, before: Callable[[int], int]) -> Image.Image:
    """The central square; before: what lies beside it, of both sides together, to what lies before it."""
    short = min(picture.size)
    left, top = (before(side - short) for side in picture.size)
    return picture.crop((left, top, left + short, top + short))

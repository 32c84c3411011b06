"""How a picture comes to the size of a model, and how what was made at that size comes back to the picture."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

CROP, PAD, STRETCH = FIT_MODES = ("crop", "pad", "stretch")
# A cover resize of a very elongated picture is mostly cropped away again; beyond this it would not fit in memory.
MAX_RESIZED_PIXELS = 64_000_000
SAME_SHAPE = 0.02    # by which ratios of sides may differ where one thing lies over another


@dataclass(frozen=True)
class Fit:
    """The way from a picture of one (height, width) to another, in one of three modes.

    crop      scaled to cover the target, the rest cut away on both sides (the published way, spec 3.3)
    pad       scaled to lie within the target, filled up on both sides with its border
    stretch   both sides scaled on their own
    """

    mode: str
    source: tuple[int, int]
    target: tuple[int, int]

    @property
    def scaled(self) -> tuple[int, int]:
        """(height, width) of the whole picture at the scale of the target. ValueError if too elongated to crop."""
        if self.mode == CROP:
            return cover_size(self.source, self.target)
        if self.mode == STRETCH:
            return self.target
        scale = min(wanted / side for side, wanted in zip(self.source, self.target))
        return tuple(max(1, min(wanted, round(side * scale))) for side, wanted in zip(self.source, self.target))

    def apply(self, picture_BCHW: torch.Tensor, stretch: Callable | None = None) -> torch.Tensor:
        """(B, C, *source) -> (B, C, *target). stretch(picture, size): how it is scaled; default `resize`."""
        scaled_BCHW = (stretch or resize)(picture_BCHW, self.scaled)
        if self.mode == CROP:
            top, left = centre(self.scaled, self.target)
            return scaled_BCHW[..., top:top + self.target[0], left:left + self.target[1]]
        top, left = centre(self.target, self.scaled)
        bottom, right = (wanted - side - start
                         for wanted, side, start in zip(self.target, self.scaled, (top, left)))
        return F.pad(scaled_BCHW, (left, right, top, bottom), mode="replicate")

    def cut_padding(self, made_BCHW: torch.Tensor) -> torch.Tensor:
        """What was made at the target size, without what lies beside the picture."""
        if self.mode != PAD:
            return made_BCHW
        top, left = centre(self.target, self.scaled)
        return made_BCHW[..., top:top + self.scaled[0], left:left + self.scaled[1]]

    def restore(self, made_BCHW: torch.Tensor, nearest: bool = False) -> torch.Tensor:
        """`cut_padding`'s result -> (B, C, *source), pixel for pixel over the picture; zero where it was cropped away.

        nearest: for values that must not be mixed, such as class colours.
        """
        if self.mode != CROP:
            return scale(made_BCHW, self.source, nearest)
        starts = centre(self.scaled, self.target)
        edges = [[round(edge * side / scaled) for edge in (start, start + wanted)]
                 for start, wanted, side, scaled in zip(starts, self.target, self.source, self.scaled)]
        (top, bottom), (left, right) = edges
        restored_BCHW = made_BCHW.new_zeros(*made_BCHW.shape[:2], *self.source)
        restored_BCHW[..., top:bottom, left:right] = scale(made_BCHW, (bottom - top, right - left), nearest)
        return restored_BCHW


def scale(picture_BCHW: torch.Tensor, size: tuple[int, int], nearest: bool) -> torch.Tensor:
    return F.interpolate(picture_BCHW, size, mode="nearest-exact") if nearest else resize(picture_BCHW, size)


def fit(picture_BCHW: torch.Tensor, target: tuple[int, int]) -> torch.Tensor:
    """Cover resize and centre crop to the target (height, width) (spec 3.3). ValueError if too elongated."""
    return Fit(CROP, tuple(picture_BCHW.shape[-2:]), target).apply(picture_BCHW)


def cover_size(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Smallest (height, width) of the given shape that covers the target, fractions cut (spec 3.3)."""
    (height, width), (target_height, target_width) = size, target
    if target_height / height > target_width / width:
        cover = target_height, int(width * target_height / height)
    else:
        cover = int(height * target_width / width), target_width
    if math.prod(cover) > MAX_RESIZED_PIXELS:
        raise ValueError(f"a picture of {width}x{height} pixels is too elongated to fill {target_width}x"
                         f"{target_height}: crop it to a ratio closer to that first")
    return cover


def resize(picture_BCHW: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Stretched to (height, width), bilinear with antialiasing (spec 3.4)."""
    if tuple(picture_BCHW.shape[-2:]) == tuple(size):
        return picture_BCHW
    return F.interpolate(picture_BCHW, size=tuple(size), mode="bilinear", antialias=True)


def same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether pictures of two (height, width) lie over each other when one is stretched to the other."""
    return abs(size[0] * other[1] / (size[1] * other[0]) - 1) <= SAME_SHAPE


def centre(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    return tuple(round((side - wanted) / 2) for side, wanted in zip(size, target))


def fade(mask_B1hw: torch.Tensor, cells: int) -> torch.Tensor:
    """A mask that falls off linearly, to 0, over `cells` cells around what it covers; what it covers stays."""
    for _ in range(cells):
        around_B1hw = F.max_pool2d(mask_B1hw, 3, stride=1, padding=1)
        mask_B1hw = torch.maximum(mask_B1hw, around_B1hw - 1 / (cells + 1))
    return mask_B1hw


def widen(picture_BCHW: torch.Tensor, width: int, copies: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture in the middle of a canvas (B, C, H, width), and the mask (B, 1, H, width): 1 beside the picture.

    Beside it are its mirror images, `copies` of them on both sides and beyond those zeros (the published program has
    1), or as many as there is room for (JointNet spec 4.4, 7.2). ValueError if the canvas is narrower.
    """
    own = picture_BCHW.shape[-1]
    if width < own:
        raise ValueError(f"a canvas {width} pixels wide has no room for a picture of {own}: make it wider")
    column_W = torch.arange(width, device=picture_BCHW.device) - (width - own) // 2
    folded_W = column_W % (2 * own)
    canvas_BCHW = picture_BCHW[..., torch.where(folded_W < own, folded_W, 2 * own - 1 - folded_W)]
    copy_W = (column_W // own).abs()
    if copies is not None:
        canvas_BCHW = canvas_BCHW * (copy_W <= copies)
    mask_BCHW = (copy_W > 0).to(canvas_BCHW).expand(len(canvas_BCHW), 1, *canvas_BCHW.shape[-2:])
    return canvas_BCHW, mask_BCHW

"""Overlapping windows over a latent that is larger than a model was trained for, and the weights that blend them.

Every evaluation of the network is made window by window and averaged where windows overlap (MultiDiffusion,
arXiv 2302.08113), so that all windows agree on one picture from the first step on. Noise, velocity and clean latent
are linear in each other at one state and time: whichever the network predicts may be averaged, and a solver sees the
merged prediction only.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """A part of a latent and how much its prediction counts.

    part: indexes the last two axes of any tensor (..., h, w) of the latent's size. weight_hw: above 0.
    """

    part: tuple
    weight_hw: Tensor


@dataclass(frozen=True)
class Tiling:
    """The windows of JointNet's panoramas and upsampling (JointNet spec 3). Lengths in latent cells.

    window       (height, width); a picture that is smaller shrinks it
    stride       from one window to the next, both ways
    ramp         (down, across): over how many cells from its edges a window's weight rises to 1; 0: not at all
    wrap         the right edge goes on at the left one, and so do windows
    full_view    the whole picture is one more window in steps 0 .. int(steps * full_view), both included; 0: never
    full_weight  of that window; the others have 1

    ValueError for a stride that leaves gaps and for values out of range.
    """

    window: tuple[int, int]
    stride: int
    ramp: tuple[int, int] = (0, 0)
    wrap: bool = False
    full_view: float = 0.0
    full_weight: float = 5.0

    def __post_init__(self):
        if not 1 <= self.stride <= min(self.window):
            raise ValueError(f"windows of {self.window[0]}x{self.window[1]} cells every {self.stride} cells: the "
                             f"stride must be from 1 to {min(self.window)}, or cells are left out")
        if min(self.ramp) < 0 or not 0 <= self.full_view <= 1 or self.full_weight <= 0:
            raise ValueError(f"ramp {self.ramp} must not be negative, full_view {self.full_view} be from 0 to 1 and "
                             f"full_weight {self.full_weight} above 0")

    def full_at(self, step: int, steps: int) -> bool:
        """Whether step 0 .. steps - 1 sees the whole picture too."""
        return self.full_view > 0 and step <= int(steps * self.full_view)

    def offsets(self, steps: int, seed: int) -> list[int]:
        """For each step by how many cells the windows are moved to the right: 0 .. stride - 1, without wrap 0.

        The first steps of a longer run have the same.
        """
        if not self.wrap:
            return [0] * steps
        return torch.randint(self.stride, (steps,), generator=torch.Generator().manual_seed(seed)).tolist()

    def windows(self, size: tuple[int, int], *, offset: int = 0, full: bool = False) -> list[Window]:
        """All windows over a latent of (height, width), row by row, the full view last.

        ValueError for an offset without wrap: what it uncovers would belong to no window.
        """
        if offset and not self.wrap:
            raise ValueError(f"windows moved by {offset} cells leave the first ones out: only circular ones can move")
        height, width = (min(side, wanted) for side, wanted in zip(size, self.window))
        rows = strided_starts(size[0], height, self.stride)
        columns = strided_starts(size[1], width, self.stride, self.wrap)
        weight_hw = torch.minimum(ramp(height, self.ramp[0])[:, None], ramp(width, self.ramp[1]))
        found = [Window((..., slice(row, row + height), span(column + offset, width, size[1])), weight_hw)
                 for row in rows for column in columns]
        if full:
            found.append(Window((..., slice(0, size[0]), span(offset, size[1], size[1])),
                                torch.full(size, float(self.full_weight))))
        return found


def strided_starts(length: int, window: int, stride: int, wrap: bool = False) -> list[int]:
    """First cells of windows every `stride` cells, the last one moved flush to the edge where they do not fit.

    The published program leaves the cells out that remain there (JointNet spec 7.2). wrap: windows go on at the start.
    """
    if window >= length:
        return [0]
    if wrap:
        return list(range(0, length, stride))
    return sorted({*range(0, length - window, stride), length - window})


def span(start: int, width: int, length: int) -> slice | Tensor:
    """Indices of `width` cells from `start` on a circle of `length` cells; a slice if they do not cross its end."""
    start %= length
    if start + width <= length:
        return slice(start, start + width)
    return (start + torch.arange(width)) % length


def ramp(window: int, size: int) -> Tensor:
    """(window,) weights that rise linearly to 1 over `size` cells from both ends, at the centres of cells; 0: ones."""
    if size == 0:
        return torch.ones(window)
    centre = torch.arange(window) + 0.5
    return torch.minimum(centre, window - centre).clamp_max(size) / size


def merge(evaluate: Callable[[tuple], Tensor], x: Tensor, windows: Iterable[Window]) -> Tensor:
    """The weighted mean, summed in float32, of `evaluate` over windows that cover a tensor (..., h, w).

    evaluate(part): the value for x[part], of the same shape.
    """
    total, weights_hw = torch.zeros_like(x, dtype=torch.float32), torch.zeros(x.shape[-2:], device=x.device)
    for window in windows:
        weight_hw = window.weight_hw.to(x.device)
        total[window.part] += evaluate(window.part).float() * weight_hw
        weights_hw[window.part] += weight_hw
    return (total / weights_hw).to(x.dtype)


def window_starts(length: int, window: int, overlap: int) -> list[int]:
    """First cells of evenly spread windows that cover `length` cells and overlap by at least `overlap`."""
    if window >= length:
        return [0]
    count = math.ceil((length - overlap) / (window - overlap))
    return [round(place * (length - window) / (count - 1)) for place in range(count)]


def window_weight(window: int, overlap: int) -> Tensor:
    """(window,) positive weights that rise over the overlap at both ends."""
    cell = torch.arange(window)
    return (torch.minimum(cell, window - 1 - cell) + 1).clamp_max(overlap + 1).float()


def by_windows(evaluate: Callable[[tuple], Tensor], x: Tensor, size: tuple[int, int],
               overlap: tuple[int, int]) -> Tensor:
    """`merge` over evenly spread windows of size (height, width) that overlap by at least (down, across) cells.

    A single window is evaluated as it is.
    """
    height, width = (min(side, wanted) for side, wanted in zip(x.shape[-2:], size))
    rows, columns = (window_starts(length, window, lap) for length, window, lap in zip(
        x.shape[-2:], (height, width), overlap))
    if len(rows) == len(columns) == 1:
        return evaluate((..., slice(None), slice(None)))
    weight_hw = window_weight(height, overlap[0])[:, None] * window_weight(width, overlap[1])
    return merge(evaluate, x, [Window((..., slice(row, row + height), slice(column, column + width)), weight_hw)
                               for row in rows for column in columns])


def seam(picture_BCHW: Tensor) -> float:
    """The mean step from the last column to the first, over that between neighbouring columns: about 1 if closed."""
    steps_BCHW = (picture_BCHW - picture_BCHW.roll(1, -1)).abs()
    return float(steps_BCHW[..., 0].mean() / steps_BCHW[..., 1:].mean())

"""Overlapping windows over a latent that is larger than a model was trained for, and the weights that blend them.

Every evaluation of the network is made window by window and averaged where windows overlap (MultiDiffusion,
arXiv 2302.08113), so that all windows agree on one picture from the first step on.
"""

import math
from collections.abc import Callable

import torch


def window_starts(length: int, window: int, overlap: int) -> list[int]:
    """First cells of evenly spread windows that cover `length` cells and overlap by at least `overlap`."""
    if window >= length:
        return [0]
    count = math.ceil((length - overlap) / (window - overlap))
    return [round(place * (length - window) / (count - 1)) for place in range(count)]


def window_weight(window: int, overlap: int) -> torch.Tensor:
    """(window,) positive weights that rise over the overlap at both ends."""
    cell = torch.arange(window)
    return (torch.minimum(cell, window - 1 - cell) + 1).clamp_max(overlap + 1).float()


def by_windows(evaluate: Callable, x: torch.Tensor, size: tuple[int, int], overlap: tuple[int, int]) -> torch.Tensor:
    """`evaluate` over a tensor (..., h, w), window by window, blended.

    evaluate(part): the value for x[part], of the same shape; part indexes the last two axes. size, overlap: cells.
    A single window is evaluated as it is.
    """
    height, width = (min(side, wanted) for side, wanted in zip(x.shape[-2:], size))
    rows, columns = (window_starts(length, window, lap) for length, window, lap in zip(
        x.shape[-2:], (height, width), overlap))
    if len(rows) == len(columns) == 1:
        return evaluate((..., slice(None), slice(None)))
    weight_hw = window_weight(height, overlap[0])[:, None] * window_weight(width, overlap[1])
    weight_hw = weight_hw.to(x.device)
    total, weights_hw = torch.zeros_like(x, dtype=torch.float32), torch.zeros(x.shape[-2:], device=x.device)
    for row in rows:
        for column in columns:
            part = ..., slice(row, row + height), slice(column, column + width)
            total[part] += evaluate(part).float() * weight_hw
            weights_hw[part] += weight_hw
    return (total / weights_hw).to(x.dtype)

"""Running a translation-invariant picture function piece by piece, with blended seams."""

from collections.abc import Callable

import torch


def tile_starts(size: int, tile: int, overlap: int) -> list[int]:
    """Start positions of tiles of length `tile` that cover 0..size with at least `overlap` in common."""
    if size <= tile:
        return [0]
    step = tile - overlap
    return [*range(0, size - tile, step), size - tile]


def _ramp(length: int, overlap: int, first: bool, last: bool, scale: float) -> torch.Tensor:
    """Weights along one tile side: 1, but at a neighbour 0 on the outer quarter of the overlap (which lacks
    surroundings) and rising over its middle half."""
    weight = torch.ones(length)
    width = round(overlap * scale)
    rise = (((torch.arange(width) + 0.5) / width - 0.25) * 2).clamp(0, 1)
    if not first:
        weight[:width] = rise
    if not last:
        weight[-width:] = rise.flip(0)
    return weight


def run_tiled(function: Callable, x_BCHW: torch.Tensor, tile: int, overlap: int, scale: float) -> torch.Tensor:
    """`function` over overlapping tiles of the input, blended linearly where they overlap.

    Args:
        function: (B, C, h, w) -> (B, C', h * scale, w * scale).
        tile, overlap: in input positions; times `scale` they must be whole numbers.
    """
    if not 0 < overlap <= tile // 2:
        raise ValueError(f"tile overlap {overlap} must be positive and at most half of the tile side {tile}")
    height, width = x_BCHW.shape[-2:]
    tops, lefts = tile_starts(height, tile, overlap), tile_starts(width, tile, overlap)
    total = weights = None
    for top in tops:
        for left in lefts:
            piece = function(x_BCHW[..., top:top + tile, left:left + tile])
            if total is None:
                total = piece.new_zeros((*piece.shape[:2], round(height * scale), round(width * scale)))
                weights = total.new_zeros(total.shape[-2:], dtype=torch.float32)
            weight = (_ramp(piece.shape[-2], overlap, top == 0, top == tops[-1], scale)[:, None]
                      * _ramp(piece.shape[-1], overlap, left == 0, left == lefts[-1], scale)).to(piece.device)
            place = (..., slice(round(top * scale), round(top * scale) + piece.shape[-2]),
                     slice(round(left * scale), round(left * scale) + piece.shape[-1]))
            total[place] += piece * weight.to(piece.dtype)
            weights[place] += weight
    return total / weights.to(total.dtype)

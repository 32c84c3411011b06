"""Going back and forth along the sampling path (RePaint, arXiv 2201.09865).

Where known parts are put back after every step, what is made anew sees them only as they were then. A jump back to an
earlier noise level and the same steps once more let both grow together. Any solver, any family.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def noised_back(x: Tensor, level: float, earlier: float, noise: Tensor, flow: bool) -> Tensor:
    """A state at noise `level` brought back to the level `earlier`, above it, with fresh noise.

    flow: x = (1 - level) data + level noise, levels are flow times; otherwise x = data + level noise.
    """
    shrink = (1 - earlier) / (1 - level) if flow else 1.0
    return shrink * x + (earlier ** 2 - (shrink * level) ** 2) ** 0.5 * noise


def resampled(solve: Callable[[Tensor, Tensor, int], Tensor], x: Tensor, levels: Tensor, *, jump: int, times: int,
              flow: bool, generator: torch.Generator) -> Tensor:
    """A run over `levels` (steps + 1,), `jump` steps at a time, each stretch `times` times.

    solve(x, part, first): the solver over `part` of the levels, which begins at step `first`; it starts afresh, so
    that a multistep solver knows the steps of a stretch only. The noise is drawn on the CPU.
    """
    for first in range(0, len(levels) - 1, jump):
        part = levels[first:first + jump + 1]
        for again in range(times):
            if again:
                noise = torch.randn(x.shape, generator=generator, device="cpu").to(x)
                x = noised_back(x, float(part[-1]), float(part[0]), noise, flow)
            x = solve(x, part, first)
    return x

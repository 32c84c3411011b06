"""Noise levels and steps of Stable Diffusion, as JointNet samples (spec 1.8, 8.1).

With a = cumulative alpha and sigma = sqrt((1 - a) / a), a state z = sqrt(a) clean + sqrt(1 - a) noise is written here
as x = z / sqrt(a) = clean + sigma noise. In x, a step of DDIM with eta 0 is a plain Euler step in sigma.
"""

import torch
from torch import Tensor

LEVELS = 1000
# Like the published scripts: a grid with fewer than two levels per step would leave the table.
MOST_STEPS = LEVELS - 1


def noise_levels() -> Tensor:
    """(1000,) float64 sigma by timestep, from 0.0292 to 14.6."""
    betas = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, LEVELS, dtype=torch.float32) ** 2
    alphas = (1 - betas).cumprod(0).double()
    return ((1 - alphas) / alphas).sqrt()


def timesteps(steps: int, strength: float = 1.0) -> list[int]:
    """The timesteps to evaluate, descending to 1: the last int(steps * strength) ones of an even grid.

    If `steps` does not divide 1000 the grid starts lower, as in the original: 30 steps at 958 instead of 968.
    ValueError if nothing is left to evaluate.
    """
    if not 1 <= steps <= MOST_STEPS or not 0 <= strength <= 1:
        raise ValueError(f"steps {steps} must be from 1 to {MOST_STEPS}, strength {strength} from 0 to 1")
    count = int(steps * strength)
    if count < 1:
        raise ValueError(f"{steps} steps at strength {strength} leave nothing to do: at least 1 / {steps} is needed")
    ratio = LEVELS // steps
    return [number * ratio + 1 for number in reversed(range(count))]


def sigmas(grid: list[int], clean_end: bool = True) -> Tensor:
    """(len(grid) + 1,) float64 noise levels of the steps over timesteps `grid`.

    clean_end: the last step goes to 0; the published one ends at timestep 0, whose level is 0.0292.
    """
    levels = noise_levels()
    return torch.cat([levels[grid], levels[:1] * (not clean_end)])

"""The flow of a picture (spec 5.1): its noise levels; Euler steps and guidance are those of every family."""

import torch
from torch import Tensor

from ..sampling import Callback, guided, sample_flow_euler
from .network import DualDiffusionTransformer


def shifted(u: Tensor, shift: float) -> Tensor:
    return shift * u / (1 + (shift - 1) * u)


def noise_levels(steps: int, shift: float = 3.0) -> Tensor:
    """(steps + 1,) float64 noise levels from 1 to 0. The shift acts twice at the low end, as it does in the original.

    In ComfyUI: scheduler `normal` with shift 3. ValueError for no steps or a shift that is not above 0.
    """
    if steps < 1 or shift <= 0:
        raise ValueError(f"steps {steps} must be at least 1 and shift {shift} above 0")
    lowest = shifted(torch.tensor(1e-3, dtype=torch.float64), shift)
    u = torch.linspace(1, lowest.item(), steps, dtype=torch.float64)
    return torch.cat([shifted(u, shift), u.new_zeros(1)])


@torch.no_grad()
def sample_picture(network: DualDiffusionTransformer, noise_BCHW: Tensor, states_TLE: Tensor, levels: Tensor, *,
                   guidance: float = 7.0, callback: Callback | None = None) -> Tensor:
    """Scaled latents (B, C, H, W) float32 from noise.

    states_TLE: T5 states of the prompts, T = B, or with guidance T = 2 B: of the negative prompts first. levels: see
    `noise_levels`. callback: see `sampling`.
    """
    text_TLC = network.embed_text(states_TLE)

    def velocity(z, level):
        return network.velocity(z.to(text_TLC.dtype), text_TLC, 1000 * level[None].float())

    branches = len(text_TLC) // len(noise_BCHW)
    return sample_flow_euler(guided(velocity, guidance) if branches == 2 else velocity, noise_BCHW.to(text_TLC.device),
                             levels, callback)

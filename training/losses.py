"""Flow-matching loss of joint training (spec 8.5)."""

import torch
from torch import Tensor

BASE_SIGMAS = 1 - torch.linspace(1, 0.001, 1000, dtype=torch.float64)


def shifted_sigmas(shift: float) -> Tensor:
    """(1000,) float64 noise levels of the training schedule."""
    return shift * BASE_SIGMAS / (1 + (shift - 1) * BASE_SIGMAS)


def draw_times(count: int, shift: float, generator: torch.Generator, mean=0.0, std=1.0) -> tuple[Tensor, Tensor]:
    """Logit-normal noise levels (count,) float64 and the integer times (count,) that the model is told."""
    u = torch.sigmoid(torch.randn(count, generator=generator) * std + mean)
    sigma = shifted_sigmas(shift)[(u * 1000).long().clamp_max(999)]
    return sigma, (1000 * sigma).trunc()


def flow_loss(model, x0_BCDHW: Tensor, y_BMC: Tensor | None, mask_BM: Tensor | None, roles, *, sigma_B: Tensor,
              time_B: Tensor, noise_BCDHW: Tensor, null_rows_B: Tensor | None, weight_D: Tensor) -> Tensor:
    """Squared error per generated slot (D',), each weighted by `weight_D` of its domain (all domains of the model)."""
    sigma = sigma_B.to(x0_BCDHW.dtype).view(-1, 1, 1, 1, 1)
    x_t = (1 - sigma) * x0_BCDHW + sigma * noise_BCDHW
    context = model.prepare(y_BMC, mask_BM, roles, x0_BCDHW, null_rows_T=null_rows_B, dtype=x0_BCDHW.dtype)
    error = model.velocity(x_t, time_B.to(x_t.dtype), context).float() - (noise_BCDHW - x0_BCDHW)
    slots = list(roles.generated_slots)
    per_domain = error[:, :, slots].square().mean(dim=(0, 1, 3, 4))
    return per_domain * weight_D[[roles.active[slot] for slot in slots]]

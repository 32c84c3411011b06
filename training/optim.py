"""Muon for block matrices, AdamW for the rest, and the learning-rate schedule."""

import torch
from torch import Tensor


def orthogonalise(matrices_KMN: Tensor, iterations: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices by a quintic Newton-Schulz iteration (Jordan et al. 2024, Muon)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices_KMN.shape[-2] > matrices_KMN.shape[-1]
    x = matrices_KMN.mT if tall else matrices_KMN
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices_KMN.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised. torch.optim.Muon takes 2-D parameters only; half of this network's
    matrices are 1x1 convolutions, and equal shapes of all blocks are worth one batched iteration."""

    def __init__(self, params, lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape: dict[tuple, list] = {}
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["momentum"] = torch.zeros_like(param)
                state["momentum"].lerp_(param.grad, 1 - group["momentum"])
                update = param.grad.lerp(state["momentum"], group["momentum"])
                by_shape.setdefault(tuple(param.flatten(1).shape), []).append((param, update.flatten(1)))
            for (rows, columns), pairs in by_shape.items():
                scale = group["lr"] * max(1, rows / columns) ** 0.5
                updates = orthogonalise(torch.stack([update for _, update in pairs]))
                for (param, _), update in zip(pairs, updates):
                    param.add_(update.view_as(param), alpha=-scale)


def make_optimizers(model, config) -> list[torch.optim.Optimizer]:
    """Block matrices (linear layers and 1x1 convolutions) go to Muon, all else to AdamW."""
    matrices, rest = [], []
    for name, param in model.named_parameters():
        is_matrix = name.startswith("blocks.") and param.ndim in (2, 4) and "table" not in name and \
            "depth_conv" not in name
        (matrices if is_matrix else rest).append(param)
    return [Muon(matrices, config.muon_lr),
            torch.optim.AdamW(rest, config.adamw_lr, betas=tuple(config.betas), weight_decay=0.0)]


def schedule(step: int, steps: int, warmup: int, decay: float) -> float:
    """Factor on the peak rate: linear warm-up, constant, linear decay to zero over the last share `decay`."""
    return min(1.0, (step + 1) / max(1, warmup), (steps - step) / max(1, decay * steps))

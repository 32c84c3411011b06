"""The optimisers by name, and the learning-rate schedule."""

import importlib
import math

import torch
from torch import Tensor

from .came import Came
from .config import OptimConfig, TrainConfig
from .rounding import Rounded


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
    def step(self, closure=None):
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


def make_optimizers(model, config: TrainConfig) -> list:
    """One optimiser over what is trained, or two: Muon of block matrices (linear layers, 1x1 convolutions) and AdamW of
    the rest. With bfloat16 weights they are wrapped by `Rounded`.
    """
    optim, lr = config.optim, peak_rates(config)[-1]
    trained = {name: param for name, param in model.named_parameters() if param.requires_grad}
    if optim.name == "muon":
        matrices = [param for name, param in trained.items() if is_block_matrix(name, param)]
        rest = [param for name, param in trained.items() if not is_block_matrix(name, param)]
        made = [Muon(matrices, optim.muon_lr), adamw(rest, optim, lr)]
    else:
        make = {"adamw": adamw, "adamw_8bit": adamw_8bit, "came": came, "came_8bit": came, "prodigy": prodigy}
        made = [make[optim.name](list(trained.values()), optim, lr)]
    if config.speed.precision == "pure_bf16":
        return [Rounded(optimizer, config.speed.rounding, config.seed) for optimizer in made]
    return made


def is_block_matrix(name: str, param: Tensor) -> bool:
    return "blocks." in name and param.ndim in (2, 4) and "table" not in name and "depth_conv" not in name


def adamw(params: list, config: OptimConfig, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)


def adamw_8bit(params: list, config: OptimConfig, lr: float) -> torch.optim.Optimizer:
    """Both moments in blocks of 256 values (Dettmers et al. 2022), on the CPU too."""
    library = optional("bitsandbytes", config.name)
    return library.optim.AdamW8bit(params, lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay,
                                   min_8bit_size=config.min_8bit)


def came(params: list, config: OptimConfig, lr: float) -> torch.optim.Optimizer:
    return Came(params, lr, config.betas, weight_decay=config.weight_decay, min_8bit=config.min_8bit,
                block_rows=config.block_rows if config.name == "came_8bit" else 0)


def prodigy(params: list, config: OptimConfig, lr: float) -> torch.optim.Optimizer:
    """Mishchenko and Defazio 2023. The small rates of a warm-up do not count in the estimate."""
    return optional("prodigyopt", config.name).Prodigy(params, lr, betas=config.betas, eps=config.eps,
                                                       weight_decay=config.weight_decay, safeguard_warmup=True)


def optional(package: str, name: str):
    """ImportError that says what to install."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ImportError(f'optim.name = "{name}" needs the package {package}: pip install {package}') from error


def peak_rates(config: TrainConfig) -> list[float]:
    """Of each optimiser of `make_optimizers`."""
    optim = config.optim
    lr = optim.lr * (config.batch / 256) ** 0.5 if optim.scale_lr else optim.lr
    return [optim.muon_lr, lr] if optim.name == "muon" else [lr]


def schedule(step: int, steps: int, optim: OptimConfig) -> float:
    """Factor on the peak rate at a step counted from 0: linear warm-up, then the named course down to `floor`."""
    warm = (step + 1) / max(1, optim.warmup)
    left = (steps - step) / max(1, steps - optim.warmup)    # 1 after the warm-up, about 0 in the last step
    course = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * min(1.0, left)),
              "wsd": (steps - step) / max(1, optim.decay * steps)}[optim.schedule]
    return min(1.0, warm, optim.floor + (1 - optim.floor) * min(1.0, course))


def set_rates(optimizers: list, config: TrainConfig, step: int) -> float:
    """Tell the optimisers the learning rates of a step and its number; returns the factor on the peaks."""
    factor = schedule(step, config.steps, config.optim)
    for optimizer, peak in zip(optimizers, peak_rates(config)):
        for group in optimizer.param_groups:
            group["lr"] = peak * factor
        if isinstance(optimizer, Rounded):
            optimizer.number = step
    return factor

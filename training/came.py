"""CAME (Luo et al. 2023): Adafactor's factored second moment, and the update damped where it is uncertain.

As the original trained with it: no bias correction, and optionally the first moment of large matrices in 8 bits.
"""

import torch
from torch import Tensor

TINY = 1e-30         # added to squared gradients
TINY_DOUBT = 1e-16   # and to the squared distance of an update from the average update


class Came(torch.optim.Optimizer):
    """Matrices (R, C) and 1x1 convolutions keep averages of R rows and C columns; all else keeps one per element.

    betas: of the update, of the squared gradient, of the update's uncertainty. clip: largest root mean square of an
    update before averaging. block_rows: 0, or the first moment of factored tensors with more than `min_8bit` elements
    is stored in 8 bits, with one range for so many rows. States keep their types in state dictionaries.
    """

    def __init__(self, params, lr: float, betas: tuple[float, float, float] = (0.9, 0.999, 0.9999), *,
                 weight_decay: float = 0.0, clip: float = 1.0, block_rows: int = 0, min_8bit: int = 16384):
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay, "clip": clip,
                                  "block_rows": block_rows, "min_8bit": min_8bit})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    update = self.update(param, self.state[param], group)
                    param.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.view_as(param), alpha=-group["lr"])

    def update(self, param: Tensor, state: dict, group: dict) -> Tensor:
        """The step per rate; a factored one is (R, C)."""
        factored = is_matrix(param)
        gradient = param.grad.flatten(1).float() if factored else param.grad.float()
        beta1, beta2, beta3 = group["betas"]
        damp = factored_damping if factored else damping
        update = gradient * damp(gradient.square() + TINY, state, "square", beta2)
        update /= (update.square().mean().sqrt() / group["clip"]).clamp(min=1)
        eight_bit = factored and group["block_rows"] and param.numel() > group["min_8bit"]
        if eight_bit:
            moment = expand(state, group["block_rows"]) if "moment" in state else torch.zeros_like(update)
        else:
            moment = state.setdefault("moment", torch.zeros_like(update))
        moment.lerp_(update, 1 - beta1)
        if eight_bit:
            state.update(compress(moment, group["block_rows"]))
        if not factored:
            return moment
        return moment * damp((update - moment).square() + TINY_DOUBT, state, "doubt", beta3)

    def load_state_dict(self, state_dict: dict) -> None:
        """As every optimiser's, but states keep their types and are not given that of the weights."""
        super().load_state_dict(state_dict)
        restore_types(self, state_dict)


def is_matrix(param: Tensor) -> bool:
    return param.ndim == 2 or param.ndim == 4 and param.shape[2:] == (1, 1)


def damping(square: Tensor, state: dict, name: str, beta: float) -> Tensor:
    """1 / sqrt of the running average."""
    average = state.setdefault(name, torch.zeros_like(square))
    return average.lerp_(square, 1 - beta).rsqrt()


def factored_damping(square_RC: Tensor, state: dict, name: str, beta: float) -> Tensor:
    """(R, C): 1 / sqrt of the running average, taken as an outer product of averages over columns and rows."""
    rows = state.setdefault(f"{name}_rows", square_RC.new_zeros(square_RC.shape[0]))
    columns = state.setdefault(f"{name}_columns", square_RC.new_zeros(square_RC.shape[1]))
    rows.lerp_(square_RC.mean(dim=1), 1 - beta)
    columns.lerp_(square_RC.mean(dim=0), 1 - beta)
    return (rows / rows.mean()).rsqrt()[:, None] * columns.rsqrt()


def compress(moment_RC: Tensor, block_rows: int) -> dict[str, Tensor]:
    """uint8 codes, and per block of rows the lowest value and the step between codes (0 where all are equal)."""
    blocks = moment_RC.split(block_rows)
    low = torch.stack([block.amin() for block in blocks])
    scale = (torch.stack([block.amax() for block in blocks]) - low) / 255
    step = per_row(torch.where(scale > 0, scale, 1), moment_RC, block_rows)
    codes = ((moment_RC - per_row(low, moment_RC, block_rows)) / step).round().to(torch.uint8)
    return {"moment": codes, "moment_low": low, "moment_scale": scale}


def expand(state: dict, block_rows: int) -> Tensor:
    """(R, C) float32, the inverse of `compress` up to half a step."""
    codes = state["moment"]
    return codes * per_row(state["moment_scale"], codes, block_rows) + per_row(state["moment_low"], codes, block_rows)


def per_row(blocks: Tensor, like_RC: Tensor, block_rows: int) -> Tensor:
    """(R, 1) from one value per block of rows."""
    return blocks.repeat_interleave(block_rows)[:len(like_RC), None]


def restore_types(optimizer: torch.optim.Optimizer, state_dict: dict) -> None:
    """After load_state_dict, which casts states to the type of their weight: put them back as they were saved."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    names = [name for group in state_dict["param_groups"] for name in group["params"]]
    for param, name in zip(params, names):
        for key, value in state_dict["state"].get(name, {}).items():
            if isinstance(value, Tensor) and value.dtype != optimizer.state[param][key].dtype:
                optimizer.state[param][key] = value.to(param.device, copy=True)

"""Weights in bfloat16 without float32 copies: each step works on one tensor in float32 and rounds it back with care.

bfloat16 has 8 bits of mantissa, so a step below 1/512 of a weight would be lost by rounding to the nearest. Either
rounding is random and right on average, or what it took is kept beside the weight and given back in the next step.
"""

import torch
from torch import Tensor

from .came import restore_types

REST = "rest"    # state of a weight: what rounding took from it


def to_bfloat16(model: torch.nn.Module) -> None:
    """All parameters; buffers stay as they are."""
    for param in model.parameters():
        param.data = param.data.bfloat16()


def round_randomly(exact: Tensor, generator: torch.Generator) -> Tensor:
    """float32 -> one of the two nearest bfloat16 values, the nearer the likelier, so that the average is exact."""
    bits = exact.contiguous().view(torch.int32)
    below = torch.randint(1 << 16, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    return ((bits + below) & -(1 << 16)).view(torch.float32).bfloat16()


class Rounded:
    """An optimiser for bfloat16 weights around one that sees float32 weights, a tensor at a time.

    For optimisers with one group that treat every tensor on its own. rounding: "stochastic", or "kahan", which keeps
    another bfloat16 per weight. `number` is the step about to be taken; it seeds the rounding, so that a resumed run
    rounds alike, and all copies of a model too.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rounding: str, seed: int):
        self.optimizer, self.rounding, self.seed, self.number = optimizer, rounding, seed, 0

    @property
    def param_groups(self) -> list[dict]:
        return self.optimizer.param_groups

    @property
    def state(self) -> dict:
        return self.optimizer.state

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict:
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        self.optimizer.load_state_dict(state_dict)
        restore_types(self.optimizer, state_dict)

    @torch.no_grad()
    def step(self, closure=None) -> None:
        group, = self.param_groups
        params = group["params"]
        generator = torch.Generator(params[0].device).manual_seed(self.seed * 1_000_003 + self.number)
        for param in params:
            if param.grad is not None:
                exact = self.exact(param)
                exact.grad = param.grad.float()
                self.step_alone(group, param, exact)
                self.keep(param, exact.detach(), generator)
        group["params"] = params

    def exact(self, param: Tensor) -> torch.nn.Parameter:
        weight = param.float()
        return torch.nn.Parameter(weight + self.state[param][REST].float() if REST in self.state[param] else weight)

    def step_alone(self, group: dict, param: Tensor, exact: torch.nn.Parameter) -> None:
        """The inner optimiser sees the float32 weight only, with the states of the weight."""
        group["params"] = [exact]
        self.state[exact] = self.state.pop(param)
        self.optimizer.step()
        self.state[param] = self.state.pop(exact)

    def keep(self, param: Tensor, exact: Tensor, generator: torch.Generator) -> None:
        if self.rounding == "stochastic":
            param.copy_(round_randomly(exact, generator))
        else:
            param.copy_(exact)
            self.state[param][REST] = (exact - param.float()).bfloat16()

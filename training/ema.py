"""Averaged weights."""

import torch


class Ema:
    """Exponential moving average of what is trained, in float32. Sharded parameters have sharded averages."""

    def __init__(self, model, decay: float):
        self.decay = decay
        self.values = {name: param.detach().clone().float()
                       for name, param in model.named_parameters() if param.requires_grad}

    @torch.no_grad()
    def update(self, model, step: int) -> None:
        """After step number `step`, counted from 1; early averages forget faster."""
        decay = min(self.decay, step / (step + 20))
        params = dict(model.named_parameters())
        names = list(self.values)
        torch._foreach_lerp_([self.values[name] for name in names], [params[name].float() for name in names],
                             1 - decay)

    @torch.no_grad()
    def copy_to(self, model) -> None:
        for name, param in model.named_parameters():
            if name in self.values:
                param.copy_(self.values[name])

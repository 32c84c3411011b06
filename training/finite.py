"""Steps whose gradient is no number: they are left out, or end the run."""

import torch
from torch import Tensor

from .config import FaultsConfig
from .faults import Faults


class Finite:
    """What decides is the gradient's norm, which all processes have in common: they act alike without asking."""

    def __init__(self, config: FaultsConfig, faults: Faults, rank: int):
        self.config, self.faults, self.rank = config, faults, rank

    def allows(self, run, norm: Tensor, seen: list[tuple]) -> bool:
        """Whether the weights may follow the gradient. seen: (total, errors, questions, batch) of each micro-batch.

        FloatingPointError if not and faults.on_nan is "stop", or too many steps in a row were left out.
        """
        if torch.isfinite(norm):
            run.left_out = 0
            return True
        run.left_out += 1
        message = f"the gradient is {float(norm)}; {self.suspects(seen)}"
        self.faults.note("not a number", f"step {run.step}, process {self.rank}: {message}", step=run.step)
        if self.config.on_nan == "stop":
            raise FloatingPointError(f'step {run.step}: {message}; faults.on_nan = "skip" leaves such steps out; the '
                                     "checkpoints so far are good")
        if run.left_out > self.config.nan_in_row:
            raise FloatingPointError(f"step {run.step}: {message}; it is number {run.left_out} one after the other, "
                                     f"more than faults.nan_in_row = {self.config.nan_in_row}: the run has diverged. A "
                                     'lower optim.lr or speed.precision = "float32" may help; the checkpoints hold the '
                                     "last good weights")
        return False

    def suspects(self, seen: list[tuple]) -> str:
        """The samples of this process whose loss is no number, or all if there is none."""
        bad = [name for _, errors, _, batch in seen for name, error in zip(batch.names, errors)
               if not all(torch.isfinite(value) for value in error.values())]
        every = [name for *_, batch in seen for name in batch.names]
        return f"no number is the loss of {', '.join(bad)}" if bad else f"samples: {', '.join(every)}"

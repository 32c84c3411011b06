"""The training loop: read top to bottom.

A step takes `batch` samples of one size, spread over the processes and their micro-batches. What each is asked (task,
roles, noise, time) is drawn from the number of the step and its place in the batch, so nothing random has to be saved
and a resumed run repeats the uninterrupted one.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.distributed.checkpoint.state_dict import (StateDictOptions, get_optimizer_state_dict,
                                                     set_optimizer_state_dict)

from . import checkpoint
from .batches import Batches
from .config import TrainConfig
from .config_file import to_dict
from .data import MicroBatches
from .ema import Ema
from .evaluate import Evaluator
from .faults import Faults, out_of_memory
from .finite import Finite
from .losses import JointLoss
from .optim import set_rates
from .parallel import Processes
from .stopping import Stopper
from .watch import Watcher, memory

TRAINED_ONLY = StateDictOptions(ignore_frozen_params=True, strict=False)


@dataclass
class Run:
    """What the steps change."""

    loss: torch.nn.Module                # JointLoss around the model, maybe copied or sharded over processes
    optimizers: list[torch.optim.Optimizer]
    ema: Ema | None
    step: int = 0                        # steps done
    pending: dict = field(default_factory=dict)    # of the log, from the checkpoint (Watcher)
    left_out: int = 0                    # steps just before this one, because of their gradient

    @property
    def inner(self) -> JointLoss:
        """Without what copies it over processes."""
        return self.loss if isinstance(self.loss, JointLoss) else self.loss.module

    @property
    def model(self):
        return self.inner.model

    def state(self) -> dict:
        """All tensors to save, under names that do not depend on the number of processes. They share the memory."""
        trained = {name: param.detach() for name, param in self.model.named_parameters() if param.requires_grad}
        state = {"model": trained,
                 "optimizers": get_optimizer_state_dict(self.model, self.optimizers, options=TRAINED_ONLY)}
        return state | ({"ema": self.ema.values} if self.ema else {})

    def restore(self, folder: Path, world: int) -> None:
        state = self.state()
        told = checkpoint.load(folder, state, world=world)
        self.step, self.pending, self.left_out = told["step"], told.get("pending", {}), told.get("left_out", 0)
        set_optimizer_state_dict(self.model, self.optimizers, state["optimizers"], options=TRAINED_ONLY)


def train(config: TrainConfig, run: Run, data: MicroBatches, processes: Processes, watcher: Watcher,
          evaluator: Evaluator | None = None) -> None:
    """Train from run.step to config.steps, or until something asks to stop. Checkpoints lie in config.output."""
    output, faults = Path(config.output), Faults(config.output)
    batches, finite = Batches(data, run.step, faults), Finite(config.faults, faults, processes.rank)
    with Stopper(output, config.save, processes) as stopper, processes.kernels():
        while run.step < config.steps:
            stopper.ask()
            if evaluator and run.step == 0:
                watcher.evaluated(run.step, *evaluator.evaluate(run))
            step(config, run, batches, data.accumulation, processes, watcher, finite)
            if evaluator and evaluator.due(run.step):    # before the checkpoint: a killed evaluation is made again
                watcher.evaluated(run.step, *evaluator.evaluate(run))
            order = stopper.answer(run.step, last=run.step == config.steps)
            if order.save:
                save(config, run, output, processes, watcher)
            if order.stop:
                break
    watcher.ended(run.step)


def step(config: TrainConfig, run: Run, batches: Batches, accumulation: int, processes: Processes, watcher: Watcher,
         finite: Finite) -> None:
    """One optimiser step, or none if the gradient is no number."""
    seen, batch = [], None
    try:
        for micro in range(accumulation):
            batch, questions = next(batches)
            with processes.gathering(run.loss, last=micro == accumulation - 1), processes.autocast(config.speed):
                total, errors = run.loss(batch.to(processes.device), questions)
            # The processes' gradients are averaged, not summed. A loss that is no number makes all of them none.
            (total * (processes.world / config.batch + 0 * total.detach())).backward()
            seen.append((total.detach(), errors, questions, batch))
        trained = [param for param in run.model.parameters() if param.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(trained, config.optim.clip or torch.inf)
        good = finite.allows(run, norm, seen)
        set_rates(run.optimizers, config, run.step)
        for optimizer in run.optimizers:
            if good:
                optimizer.step()
            optimizer.zero_grad()
        run.step += 1
        if run.ema and good:
            run.ema.update(run.model, run.step)
    except torch.OutOfMemoryError as error:
        told = out_of_memory(config, run, batch, memory(processes.device), processes.world)
        raise torch.OutOfMemoryError(told) from error
    watcher.after_step(run, norm, seen, good)


def save(config: TrainConfig, run: Run, output: Path, processes: Processes, watcher: Watcher) -> None:
    told = {"config": to_dict(config), "world": processes.world, "pending": watcher.pending(),
            "left_out": run.left_out}
    checkpoint.save(output, run.step, run.state(), told, rank=processes.rank, world=processes.world)
    if processes.rank == 0:
        checkpoint.prune(output, config.save.keep, config.save.keep_every)

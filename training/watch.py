"""What a run tells: a line per some steps in log.jsonl, on the boards and on the screen."""

import time
from pathlib import Path

import psutil
import torch
from PIL import Image
from torch.distributed.tensor import DTensor

from . import log
from .boards import Boards
from .config import TrainConfig
from .faults import Faults
from .parallel import Processes
from .progress import Progress
from .tally import Tally, means_of

SPEED = ("samples_per_s", "memory_gb", "faults")    # what differs between runs that are the same otherwise


class Watcher:
    """Collects what the steps of all processes report, from a step on; process 0 writes it down.

    pending: sums of steps before that no line has yet, from the checkpoint; so lines do not depend on where a run was
    interrupted.
    """

    def __init__(self, config: TrainConfig, processes: Processes, step: int = 0, pending: dict | None = None):
        self.config, self.processes = config, processes
        self.path, self.tally = Path(config.output) / log.NAME, Tally()
        self.started, self.samples = time.monotonic(), 0
        self.boards, self.progress, self.faults = Boards(), None, Faults(config.output)
        if processes.rank == 0:
            self.tally.take(pending or {})
            log.cut(self.path, step)
            self.boards = Boards.of_run(config, step)
            self.progress = Progress(step, config.steps)

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *_) -> None:
        self.boards.close()
        if self.progress:
            self.progress.close()

    # ---- all processes call these ------------------------------------------------------------------------------

    def count(self, total, errors, questions) -> None:
        """One micro-batch: the sum of its losses, per sample the errors by domain."""
        self.tally.add("loss", total.detach() / len(questions), len(questions))
        for question, error in zip(questions, errors):
            self.tally.sample(question, error)
        self.samples += len(questions) * self.processes.world

    def after_step(self, run, norm, seen: list[tuple], good: bool) -> None:
        """seen: what `count` takes of each micro-batch. Steps that are not good count, but their losses do not."""
        if good:
            for total, errors, questions, batch in seen:
                self.count(total, errors, questions)
            self.tally.add("norm", norm.full_tensor() if isinstance(norm, DTensor) else norm)
        self.tally.add("skipped", sum(batch.skipped for *_, batch in seen))
        self.tally.add("steps_left_out", not good, 1 / self.processes.world)
        if self.progress:
            self.progress.advance()
        if run.step % self.config.watch.every and run.step < self.config.steps:
            return
        totals = self.tally.totals(self.processes)
        counts = {name: round(totals.pop(name)[0]) for name in ("skipped", "steps_left_out")}
        values = means_of(totals) | rates(run.optimizers) | counts | self.speed()
        if self.progress:
            values["faults"] = self.faults.total()
            self.tell(run.step, values)
            self.progress.show(run.step, values)

    def speed(self) -> dict[str, float]:
        """Samples per second of all processes since the last line, memory of the one that needs most."""
        seconds = time.monotonic() - self.started
        speed = {"samples_per_s": self.samples / seconds, "memory_gb": max(self.processes.gather(memory(
            self.processes.device)))}
        self.started, self.samples = time.monotonic(), 0
        return speed

    def pending(self) -> dict[str, tuple[float, float]]:
        """What a checkpoint has to keep, so that the next line is the same after it."""
        totals = self.tally.totals(self.processes)
        if self.processes.rank == 0:
            self.tally.take(totals)
        return totals

    def evaluated(self, step: int, values: dict[str, float], pictures: dict[str, Image.Image]) -> None:
        """An evaluation after a step: values and pictures by name, without "eval/"."""
        if self.progress:
            self.tell(step, {f"eval/{name}": value for name, value in values.items()})
            for name, image in pictures.items():
                self.boards.picture(step, f"eval/{name}", image)
            self.progress.say(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()
                                                           if not name.startswith(("domain/", "time/"))))

    def ended(self, step: int) -> None:
        """The run was not cut short by an error."""
        if self.progress:
            last = f"finished: step {step}" if step == self.config.steps else (
                f"stopped as asked after step {step} of {self.config.steps}; the same command goes on from there")
            total = self.faults.total()
            self.progress.say(last + (f"; faults: {total}, see {self.faults.path}" if total else ""))

    # ---- process 0 ---------------------------------------------------------------------------------------------

    def tell(self, step: int, values: dict[str, float]) -> None:
        values = {name: value if isinstance(value, int) else float(f"{value:.6g}") for name, value in values.items()}
        log.append(self.path, {"step": step} | values)
        self.boards.scalars(step, values)


def rates(optimizers: list) -> dict[str, float]:
    """Learning rates; "muon_lr" is that of the block matrices. Prodigy's is the one that it found."""
    groups = [optimizer.param_groups[0] for optimizer in reversed(optimizers)]
    return {name: float(group["lr"] * group.get("d", 1.0)) for name, group in zip(("lr", "muon_lr"), groups)}


def memory(device: torch.device) -> float:
    """GB (10^9 bytes): the most that tensors took on a GPU so far; on the CPU what the process holds now."""
    used = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    return used / 1e9

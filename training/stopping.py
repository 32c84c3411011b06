"""What ends a run or asks for a checkpoint: signals, files, time, the last step. All processes act on the same step."""

import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from .config import SaveConfig
from .parallel import Processes

NOTHING, SAVE, STOP = 0, 1, 2    # the largest wish of any process wins


@dataclass(frozen=True)
class Order:
    save: bool
    stop: bool


class Stopper:
    """SIGTERM and SIGINT, a file `save` or `save_quit` in the run's folder, a time limit: at the next step boundary.

    A second SIGINT ends the process at once.
    """

    def __init__(self, output: Path, config: SaveConfig, processes: Processes):
        self.output, self.config, self.processes = output, config, processes
        self.wish, self.started = NOTHING, time.monotonic()
        self.saved = self.started

    def __enter__(self) -> "Stopper":
        self.before = {number: signal.signal(number, self.on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def on_signal(self, number, frame) -> None:
        if self.wish == STOP and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wish = STOP

    def ask(self) -> None:
        """At the start of a step: tell the others; their answers arrive while the step computes."""
        if self.processes.rank == 0:
            self.look_around()
        self.flag = torch.tensor([self.wish])
        self.work = dist.all_reduce(self.flag, dist.ReduceOp.MAX, async_op=True) if self.processes.world > 1 else None

    def look_around(self) -> None:
        now = time.monotonic()
        for name, wish in (("save", SAVE), ("save_quit", STOP)):
            file = self.output / name
            if file.exists():
                file.unlink()
                self.wish = max(self.wish, wish)
        if self.config.minutes and now - self.saved > 60 * self.config.minutes:
            self.wish = max(self.wish, SAVE)
        if self.config.hours and now - self.started > 3600 * self.config.hours:
            self.wish = STOP

    def answer(self, step: int, last: bool) -> Order:
        """After a step: what all processes do now."""
        if self.work:
            self.work.wait()
        wish = int(self.flag)
        save = wish > NOTHING or last or step % self.config.every == 0
        if save:
            self.saved = time.monotonic()
            self.wish = STOP if self.wish == STOP else NOTHING
        return Order(save, wish == STOP)

"""What a run tells: a line per some steps in log.jsonl and on the screen."""

import json
import time
from collections import defaultdict
from pathlib import Path

import torch

from .config import TrainConfig
from .parallel import Processes


class Watcher:
    """Collects what the steps of this process report; process 0 writes it down."""

    def __init__(self, config: TrainConfig, processes: Processes):
        self.config, self.processes = config, processes
        self.path = Path(config.output) / "log.jsonl"
        self.sums, self.counts = defaultdict(float), defaultdict(int)
        self.started, self.samples = time.monotonic(), 0

    def count(self, total, errors, questions) -> None:
        """One micro-batch: the sum of its losses, and per sample the errors by domain."""
        self.add("loss", float(total.detach()) / len(questions), len(questions))
        for question, error in zip(questions, errors):
            self.add(question.task, float(sum(error.values()) / len(error)))
        self.samples += len(questions) * self.processes.world

    def add(self, name: str, value: float, weight: int = 1) -> None:
        self.sums[name] += value * weight
        self.counts[name] += weight

    def check(self, step: int, norm) -> None:
        """FloatingPointError if the gradient is no number; the checkpoints before it are good."""
        if not torch.isfinite(norm):
            raise FloatingPointError(f"step {step}: the gradient is {float(norm)}; the checkpoints before it are good")

    def after_step(self, run, norm, rate: float) -> None:
        if run.step % self.config.watch.every or self.processes.rank:
            return
        seconds = time.monotonic() - self.started
        values = {name: round(total / self.counts[name], 5) for name, total in self.sums.items()}
        self.write(step=run.step, **values, norm=round(float(norm), 4), rate=round(rate, 4),
                   samples_per_s=round(self.samples / seconds, 2))
        self.sums.clear(), self.counts.clear()
        self.started, self.samples = time.monotonic(), 0

    def write(self, **values) -> None:
        line = json.dumps(values)
        print(line, flush=True)
        with open(self.path, "a") as log:
            log.write(line + "\n")

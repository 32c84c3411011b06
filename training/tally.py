"""Means of what samples report, over all processes. Nothing waits for the device until they are asked for."""

from collections import defaultdict

import torch

from .losses import Question
from .parallel import Processes

BANDS = 4    # of the time that the model is told


def band(time: float) -> str:
    """"250-500" for a time of 0..1000."""
    width = 1000 // BANDS
    start = min(int(time), 999) // width * width
    return f"{start}-{start + width}"


class Tally:
    def __init__(self):
        self.sums, self.counts = defaultdict(float), defaultdict(float)

    def add(self, name: str, value, weight: float = 1.0) -> None:
        """value: a number, or a tensor of one."""
        self.sums[name] = self.sums[name] + value * weight
        self.counts[name] += weight

    def sample(self, question: Question, errors: dict[str, torch.Tensor]) -> None:
        """errors: domain -> mean squared error, of the domains that one sample generates."""
        mean = sum(errors.values()) / len(errors)
        for name in (question.task, f"time/{band(question.time)}"):
            self.add(name, mean)
        for domain, error in errors.items():
            self.add(f"domain/{domain}", error)

    def means(self, processes: Processes) -> dict[str, float]:
        """All processes have to ask; the tally is empty afterwards."""
        own = {name: (float(total), self.counts[name]) for name, total in self.sums.items()}
        self.__init__()
        parts = processes.gather(own)
        names = sorted({name for part in parts for name in part})
        totals = {name: [part[name] for part in parts if name in part] for name in names}
        return {name: sum(total for total, _ in found) / sum(count for _, count in found)
                for name, found in totals.items()}

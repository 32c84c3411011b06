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
    """Sums in float64, so that it does not show in which groups they were added up."""

    def __init__(self):
        self.sums, self.counts = defaultdict(float), defaultdict(float)

    def add(self, name: str, value, weight: float = 1.0) -> None:
        """value: a number, or a tensor of one."""
        value = value.detach().double() if isinstance(value, torch.Tensor) else value
        self.sums[name] = self.sums[name] + value * weight
        self.counts[name] += weight

    def sample(self, question: Question, errors: dict[str, torch.Tensor]) -> None:
        """errors: domain -> mean squared error, of the domains that one sample generates."""
        values_D = torch.stack(list(errors.values())).double()
        mean = values_D.mean()
        self.add(question.task, mean)
        if question.time is not None:
            self.add(f"time/{band(question.time)}", mean)
        for domain, error in zip(errors, values_D.unbind()):
            self.add(f"domain/{domain}", error)

    def take(self, totals: dict[str, tuple[float, float]]) -> None:
        """Put sums and counts in that `totals` gave."""
        for name, (total, count) in totals.items():
            self.sums[name], self.counts[name] = self.sums[name] + total, self.counts[name] + count

    def totals(self, processes: Processes) -> dict[str, tuple[float, float]]:
        """(sum, count) by name, of all processes. All have to ask; the tally is empty afterwards."""
        own = {name: (float(total), self.counts[name]) for name, total in self.sums.items()}
        self.__init__()
        parts = processes.gather(own)
        names = sorted({name for part in parts for name in part})
        found = {name: [part[name] for part in parts if name in part] for name in names}
        return {name: tuple(map(sum, zip(*pairs))) for name, pairs in found.items()}

    def means(self, processes: Processes) -> dict[str, float]:
        return means_of(self.totals(processes))


def means_of(totals: dict[str, tuple[float, float]]) -> dict[str, float]:
    return {name: total / count for name, (total, count) in totals.items()}

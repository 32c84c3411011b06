"""Which samples a step reads: a pure function of the seed, the sizes and weights of the samples, and the step's number.

So a run that resumes reads on where it was, whatever was killed and however many processes there are, and nothing
about the position has to be saved.
"""

from fractions import Fraction

import torch
from torch import Tensor

from .config import TrainConfig
from .source import Source

TASK_KINDS = ("picture", "text")    # tasks that have samples of their own
BLOCK = 256    # draws of a bin that are shared out among its streams and mixed


class BatchOrder:
    """Batches of one size bin each.

    bins_N: the bin of every sample (repeats included). weights_N: how often a sample is drawn, beside the others; None:
    all alike. A bin gets batches in proportion to the weights of its samples, evenly over the run. Its samples of one
    weight are a stream: one permutation after the other, and a batch may span two of them, so none is dropped.
    """

    def __init__(self, bins_N: Tensor, batch: int, batches: int, seed: int, weights_N: Tensor | None = None):
        self.batch, self.seed = batch, seed
        weights_N = torch.ones(len(bins_N)) if weights_N is None else weights_N.double() / weights_N.max()
        self.streams: dict[int, list[Tensor]] = {}     # bin -> samples of each weight
        self.masses: dict[int, list[Fraction]] = {}    # bin -> what each stream is drawn in proportion to
        for which in map(int, bins_N.unique()):
            members = (bins_N == which).nonzero().flatten()
            self.streams[which] = [members[weights_N[members] == weight] for weight in weights_N[members].unique()]
            self.masses[which] = [Fraction(float(weights_N[stream[0]])) * len(stream) for stream in self.streams[which]]
        self.bin_of, self.turn_of = self.turns(batches)
        self.permutations: dict[tuple[int, int, int], Tensor] = {}
        self.blocks: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def turns(self, batches: int) -> tuple[Tensor, Tensor]:
        """(bin, how many batches of that bin came before) of every batch.

        The k-th batch of a bin is due at (k + u) / its share, u random in 0..1; batches come in order of that time.
        """
        total = sum(map(sum, self.masses.values()))
        due, bins, turns = [], [], []
        for number, masses in self.masses.items():
            share = float(sum(masses) / total)
            k = torch.arange(int(batches * share) + 2)
            jitter = torch.rand(len(k), generator=torch.Generator().manual_seed(self.seed + 7919 * (number + 1)))
            due.append((k + jitter.double()) / share)
            bins.append(torch.full_like(k, number))
            turns.append(k)
        order = torch.cat(due).argsort(stable=True)[:batches]
        return torch.cat(bins)[order], torch.cat(turns)[order]

    def samples(self, number: int) -> list[int]:
        """Sample indices of a batch, `batch` of them. IndexError beyond the last batch."""
        which, first = int(self.bin_of[number]), int(self.turn_of[number]) * self.batch
        return [self.draw(which, place) for place in range(first, first + self.batch)]

    def draw(self, which: int, place: int) -> int:
        """The sample at a place in the endless sequence of a bin."""
        stream, k = (0, place) if len(self.streams[which]) == 1 else self.block(which, place // BLOCK)[place % BLOCK]
        members = self.streams[which][stream]
        return int(members[self.permutation(which, stream, k // len(members))[k % len(members)]])

    def block(self, which: int, number: int) -> list[tuple[int, int]]:
        """(stream, how many draws of that stream came before) of each place of a bin's block; the last two are kept.

        The streams come in a random order: a rhythm could meet that of the tasks, and a set would see one of them only.
        """
        key = which, number
        if key not in self.blocks:
            for old in [k for k in self.blocks if k[0] == which and k[1] < number - 1]:
                del self.blocks[old]
            before, after = (self.counts(which, place) for place in (number * BLOCK, (number + 1) * BLOCK))
            streams = [stream for stream, ks in enumerate(map(range, before, after)) for _ in ks]
            coming = [iter(range(k, after[stream])) for stream, k in enumerate(before)]
            generator = torch.Generator().manual_seed(((self.seed + 7) * 1_000_003 + number) * 64 + which)
            mixed = [streams[i] for i in torch.randperm(BLOCK, generator=generator)]
            self.blocks[key] = [(stream, next(coming[stream])) for stream in mixed]
        return self.blocks[key]

    def counts(self, which: int, places: int) -> list[int]:
        """How many of a bin's first draws come from each of its streams: its share, up to one draw per stream."""
        found, mass_left = [], sum(self.masses[which])
        for mass in self.masses[which]:
            found.append(int((places - sum(found)) * mass / mass_left))
            mass_left -= mass
        return found

    def permutation(self, which: int, stream: int, turn: int) -> Tensor:
        """Order of a stream's samples in its turn-th pass; the last two are kept."""
        key = which, stream, turn
        if key not in self.permutations:
            for old in [k for k in self.permutations if k[:2] == (which, stream) and k[2] < turn - 1]:
                del self.permutations[old]
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + turn) * 64 + which + (stream << 40))
            self.permutations[key] = torch.randperm(len(self.streams[which][stream]), generator=generator)
        return self.permutations[key]


class TaskOrder:
    """Batches in which tasks take turns by micro-batch, each with samples of its own.

    bins_N: the task of every sample, as a place in TASK_KINDS; the other arguments as for `BatchOrder`. All steps have
    the same share of each task. ValueError for a batch that does not have room for every task, or no samples for one.
    """

    def __init__(self, bins_N: Tensor, tasks: tuple[str, ...], batch: int, micro_batch: int, steps: int, seed: int,
                 weights_N: Tensor | None = None):
        if batch % (micro_batch * len(tasks)):
            unit = micro_batch * len(tasks)
            raise ValueError(f"batch {batch} is not a multiple of micro_batch {micro_batch} times {len(tasks)} tasks: "
                             f"choose batch = {max(1, round(batch / unit)) * unit}")
        self.tasks = [tasks[place // micro_batch % len(tasks)] for place in range(batch)]    # of each place
        self.members, self.orders = {}, {}
        for task in dict.fromkeys(tasks):
            kind = TASK_KINDS.index(task)
            members = (bins_N == kind).nonzero().flatten()
            if not len(members):
                raise ValueError(f'no data set has samples for the task "{task}": add one, or leave it out of tasks')
            self.members[task] = members
            self.orders[task] = BatchOrder(bins_N[members], self.tasks.count(task), steps, seed + kind,
                                           None if weights_N is None else weights_N[members])

    def samples(self, number: int) -> list[int]:
        coming = {task: iter(order.samples(number)) for task, order in self.orders.items()}
        return [int(self.members[task][next(coming[task])]) for task in self.tasks]


def by_size(config: TrainConfig, source: Source) -> BatchOrder:
    return BatchOrder(source.bins_N, config.batch, config.steps, config.seed, source.weights_N)


def by_task(config: TrainConfig, source: Source) -> TaskOrder:
    return TaskOrder(source.bins_N, config.tasks, config.batch, config.micro_batch, config.steps, config.seed,
                     source.weights_N)


def share_of(micro: int, rank: int, world: int, micro_batch: int) -> range:
    """Places in a step's batch that a process takes in its `micro`-th forward pass."""
    first = (micro * world + rank) * micro_batch
    return range(first, first + micro_batch)

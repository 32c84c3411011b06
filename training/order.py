"""Which samples a step reads: a pure function of the seed, the sizes of the samples and the number of the step.

So a run that resumes reads on where it was, whatever was killed and however many processes there are, and nothing
about the position has to be saved.
"""

import torch
from torch import Tensor


class BatchOrder:
    """Batches of one size bin each.

    bins_N: the bin of every sample (repeats included). A bin gets batches in proportion to its samples, evenly over the
    run; its samples come in one permutation after the other, and a batch may span two of them, so none is dropped.
    """

    def __init__(self, bins_N: Tensor, batch: int, batches: int, seed: int):
        self.batch, self.seed = batch, seed
        self.members = {int(number): (bins_N == number).nonzero().flatten() for number in bins_N.unique()}
        self.bin_of, self.turn_of = self.turns(batches)
        self.permutations: dict[tuple[int, int], Tensor] = {}

    def turns(self, batches: int) -> tuple[Tensor, Tensor]:
        """(bin, how many batches of that bin came before) of every batch.

        The k-th batch of a bin is due at (k + u) / its share, u random in 0..1; batches come in order of that time.
        """
        total = sum(map(len, self.members.values()))
        due, bins, turns = [], [], []
        for number, members in self.members.items():
            share = len(members) / total
            k = torch.arange(int(batches * share) + 2)
            jitter = torch.rand(len(k), generator=torch.Generator().manual_seed(self.seed + 7919 * (number + 1)))
            due.append((k + jitter.double()) / share)
            bins.append(torch.full_like(k, number))
            turns.append(k)
        order = torch.cat(due).argsort(stable=True)[:batches]
        return torch.cat(bins)[order], torch.cat(turns)[order]

    def samples(self, number: int) -> list[int]:
        """Sample indices of a batch, `batch` of them. IndexError beyond the last batch."""
        which = int(self.bin_of[number])
        members = self.members[which]
        places = torch.arange(self.batch) + int(self.turn_of[number]) * self.batch
        return [int(members[self.permutation(which, int(place) // len(members))[int(place) % len(members)]])
                for place in places]

    def permutation(self, which: int, turn: int) -> Tensor:
        """Order of a bin's samples in its turn-th pass; the last two are kept."""
        key = which, turn
        if key not in self.permutations:
            for old in [k for k in self.permutations if k[0] == which and k[1] < turn - 1]:
                del self.permutations[old]
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + turn) * 64 + which)
            self.permutations[key] = torch.randperm(len(self.members[which]), generator=generator)
        return self.permutations[key]


def share_of(micro: int, rank: int, world: int, micro_batch: int) -> range:
    """Places in a step's batch that a process takes in its `micro`-th forward pass."""
    first = (micro * world + rank) * micro_batch
    return range(first, first + micro_batch)

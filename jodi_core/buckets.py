"""Order and batches of a training pass: every process its share, every batch one size bin (spec 8.2)."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import torch

from .domains import JODI_BINS, nearest_bin


def pass_order(count: int, epoch: int, rank: int = 0, ranks: int = 1) -> list[int]:
    """The sample indices that process `rank` of `ranks` sees in a pass: its contiguous share, shuffled by epoch."""
    share = count // ranks
    generator = torch.Generator().manual_seed(epoch)
    return (torch.randperm(share, generator=generator) + rank * share).tolist()


def bin_batches(order: Iterable[int], sizes: Sequence[tuple[int, int]], batch_size: int,
                bins=JODI_BINS) -> Iterator[list[int]]:
    """Batches of sample indices of one bin each, in the order in which the bins fill; incomplete ones are dropped.

    order: sample indices of one pass. sizes: (height, width) of every sample.
    """
    waiting = defaultdict(list)
    for index in order:
        size_bin = nearest_bin(*sizes[index], bins)
        waiting[size_bin].append(index)
        if len(waiting[size_bin]) == batch_size:
            yield waiting.pop(size_bin)

"""What training reads: encoded samples."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Item:
    """One encoded sample. Absent domains hold zeros."""

    latents_CLHW: Tensor    # scaled
    present_L: Tensor       # bool
    text_MC: Tensor         # valid rows only; Dual Diffusion: token numbers and labels (M, 2)
    name: str
    skipped: int = 0        # unreadable samples whose place it takes


class Source(Protocol):
    """Samples that are ready to train on."""

    bins_N: Tensor               # the size bin of every sample
    weights_N: Tensor | None     # how often a sample is drawn, beside the others; None: all alike

    def item(self, index: int, generator: torch.Generator) -> Item:
        """generator: chooses among the captions of the sample. OSError or ValueError, with the file, if unreadable."""

    def name(self, index: int) -> str:
        """Of a sample, without reading more of it than that."""

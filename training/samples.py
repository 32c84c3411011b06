"""The samples of all data sets, and their pictures as training sees them."""

from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from jodi_core.domains import nearest_bin
from jodi_core.fitting import centre, cover_size
from jodi_core.pictures import fit_for_training, load_picture, read_picture, to_rgb

from .config import DataConfig, SetConfig
from .folders import FolderSet, Sample
from .lists import ListSet
from .shards import Member, ShardSet


class Samples:
    """All data sets one after the other, each as often as it is repeated."""

    def __init__(self, config: DataConfig, domains: tuple[str, ...], bins: dict):
        if not config.sets:
            raise ValueError("nothing to train on: name a data set in [[data.sets]], or toy.scenes")
        self.domains, self.sets = domains, [open_set(part, config) for part in config.sets]
        self.targets = sorted(set(bins.values()))
        self.places = [(which, index) for which, part in enumerate(config.sets) for _ in range(part.repeat)
                       for index in range(len(self.sets[which]))]
        self.bins_N = torch.tensor([self.targets.index(nearest_bin(*self.sets[which].sizes[index], bins))
                                    for which, index in self.places])
        self.weights_N = torch.tensor([config.sets[which].weight for which, _ in self.places], dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.places)

    def target(self, index: int) -> tuple[int, int]:
        """(height, width) that a sample is brought to."""
        return self.targets[int(self.bins_N[index])]

    def sample(self, index: int) -> Sample:
        which, place = self.places[index]
        return self.sets[which].sample(place, self.domains)


def open_set(part: SetConfig, config: DataConfig) -> FolderSet | ShardSet | ListSet:
    if part.path.endswith(".json"):
        return ListSet(part)
    return ShardSet(part, config) if part.path.endswith(".tar") else FolderSet(part)


def load_for_training(domain: str, picture: Path | Member, target: tuple[int, int], segmentation: str) -> Tensor:
    """`bring_to_size` of a stored picture; ValueError or OSError if it is not readable."""
    return bring_to_size(domain, read_picture(BytesIO(picture.read_bytes()), str(picture)), target, segmentation)


def bring_to_size(domain: str, picture: Image.Image, target: tuple[int, int], segmentation: str) -> Tensor:
    """(3, H, W) in [-1, 1]: as the original (cover resize, bicubic, centre crop), class colours unmixed: "nearest"."""
    if domain != "segmentation" or segmentation == "bicubic":
        return fit_for_training(picture, target)
    height, width = cover_size((picture.height, picture.width), target)
    cover = to_rgb(picture).resize((width, height), Image.Resampling.NEAREST)
    top, left = centre((height, width), target)
    return load_picture(cover.crop((left, top, left + target[1], top + target[0])))[0] * 2 - 1

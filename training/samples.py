"""Data sets in the layout of Joint-1.6M (spec 8.1): a folder with metadata.jsonl and pictures.

A line of the metadata is a JSON object: `image` (a path in the folder), `info` {height, width}, `caption` {source: text},
and `annotation_DOMAIN` paths of the labels that the sample has; segmentation is `annotation_seg_12colors`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from jodi_core.domains import nearest_bin
from jodi_core.fitting import centre, cover_size
from jodi_core.pictures import fit_for_training, load_picture, read_picture, to_rgb
from jodi_core.role_sampling import caption_chances

from .config import DataConfig, SetConfig

NAMES = {"segmentation": "seg_12colors"}    # domains that the metadata calls otherwise


@dataclass(frozen=True)
class Sample:
    name: str                    # for messages: the metadata file and the line
    size: tuple[int, int]        # (height, width) as the metadata says
    pictures: dict[str, Path]    # of the domains that it has
    captions: dict[str, str]
    chances: dict[str, float] = field(default_factory=dict)    # of its captions, as configured

    def choose_caption(self, generator: torch.Generator) -> str:
        """ValueError if the sample has none."""
        if not self.captions:
            raise ValueError(f"{self.name}: it has no caption")
        chances = caption_chances(list(self.captions), self.chances)
        draw = torch.rand((), generator=generator, dtype=torch.float64)
        ends = torch.tensor(list(chances.values()), dtype=torch.float64).cumsum(0)
        return self.captions[list(chances)[min(int((ends <= draw).sum()), len(chances) - 1)]]


class FolderSet:
    """One data set folder. Holds where the lines of its metadata begin, and the sizes; the rest is read when needed."""

    def __init__(self, config: SetConfig):
        self.folder, self.chances = Path(config.path), config.captions
        self.metadata = self.folder / (f"metadata.{config.split}.jsonl" if config.split else "metadata.jsonl")
        if not self.metadata.is_file():
            raise FileNotFoundError(f"{self.metadata}: no such file; a data set is a folder with metadata.jsonl (or "
                                    "metadata.SPLIT.jsonl with split = \"SPLIT\")")
        starts, sizes, place = [], [], 0
        with open(self.metadata, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    starts.append((place, number))
                    sizes.append(self.size_of(line, number))
                place += len(line)
        self.starts, self.sizes = starts, sizes

    def size_of(self, line: bytes, number: int) -> tuple[int, int]:
        try:
            info = json.loads(line)["info"]
            height, width = int(info["height"]), int(info["width"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.metadata}, line {number}: no object with info.height and info.width ({error!r}); "
                             "was the file cut short?") from None
        if min(height, width) < 1:
            raise ValueError(f"{self.metadata}, line {number}: a picture of {width}x{height} pixels")
        return height, width

    def __len__(self) -> int:
        return len(self.starts)

    def sample(self, index: int, domains: tuple[str, ...]) -> Sample:
        start, number = self.starts[index]
        with open(self.metadata, "rb") as lines:
            lines.seek(start)
            entry = json.loads(lines.readline())
        paths = {domain: entry.get("image" if domain == domains[0] else f"annotation_{NAMES.get(domain, domain)}")
                 for domain in domains}
        return Sample(f"{self.metadata}, line {number}", self.sizes[index],
                      {domain: self.folder / path for domain, path in paths.items() if path},
                      entry.get("caption") or {}, self.chances)


class Samples:
    """All data sets one after the other, each as often as it is repeated."""

    def __init__(self, config: DataConfig, domains: tuple[str, ...], bins: dict):
        if not config.sets:
            raise ValueError("nothing to train on: name a data set in [[data.sets]], or toy.scenes")
        self.domains, self.sets = domains, [FolderSet(part) for part in config.sets]
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


def load_for_training(domain: str, path: Path, target: tuple[int, int], segmentation: str) -> Tensor:
    """`bring_to_size` of a file; ValueError or OSError if it is no readable picture."""
    return bring_to_size(domain, read_picture(path), target, segmentation)


def bring_to_size(domain: str, picture: Image.Image, target: tuple[int, int], segmentation: str) -> Tensor:
    """(3, H, W) in [-1, 1]: as the original (cover resize, bicubic, centre crop), class colours unmixed if "nearest"."""
    if domain != "segmentation" or segmentation == "bicubic":
        return fit_for_training(picture, target)
    height, width = cover_size((picture.height, picture.width), target)
    cover = to_rgb(picture).resize((width, height), Image.Resampling.NEAREST)
    top, left = centre((height, width), target)
    return load_picture(cover.crop((left, top, left + target[1], top + target[0])))[0] * 2 - 1

"""Data sets in the layout of Joint-1.6M (spec 8.1): a folder with metadata.jsonl and pictures.

A line of the metadata is a JSON object: `image` (a path in the folder), `info` {height, width}, `caption` {source:
text}, and `annotation_DOMAIN` paths of the labels that the sample has; segmentation is `annotation_seg_12colors`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import torch

from jodi_core.role_sampling import caption_chances

from .config import SetConfig

NAMES = {"segmentation": "seg_12colors"}    # domains that the metadata calls otherwise


@dataclass(frozen=True)
class Sample:
    name: str                    # for messages: the file that describes it, and where in it
    size: tuple[int, int]        # (height, width) as the metadata says
    pictures: dict               # of the domains that it has: Path or shards.Member, which both have read_bytes()
    captions: dict[str, str]
    chances: dict[str, float] = field(default_factory=dict)    # of its captions, as configured
    turns: tuple[tuple[str, str], ...] = ()    # questions with their answers, in the place of captions

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
                                    "metadata.SPLIT.jsonl with split = \"SPLIT\"), or tar shards of one")
        starts, sizes, place = [], [], 0
        with open(self.metadata, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    starts.append((place, number))
                    sizes.append(size_of(line, f"{self.metadata}, line {number}"))
                place += len(line)
        self.starts, self.sizes = starts, sizes

    def __len__(self) -> int:
        return len(self.starts)

    def entry(self, index: int) -> tuple[dict, str]:
        """(metadata, name) of a sample."""
        start, number = self.starts[index]
        with open(self.metadata, "rb") as lines:
            lines.seek(start)
            return json.loads(lines.readline()), f"{self.metadata}, line {number}"

    def sample(self, index: int, domains: tuple[str, ...]) -> Sample:
        entry, name = self.entry(index)
        fields = fields_of(domains)
        return Sample(name, self.sizes[index], {domain: inside(self.folder, entry[key], f"{name}: {key}")
                                                for domain, key in fields.items() if entry.get(key)},
                      captions_of(entry, name), self.chances)


def inside(folder: Path, path: str, name: str) -> Path:
    """The path of a picture. ValueError if it leads out of the folder."""
    if not isinstance(path, str):
        raise ValueError(f"{name} is {path!r}, but must be a path in the data set's folder")
    if PurePath(path).anchor or ".." in PurePath(path).parts:
        raise ValueError(f'{name} = "{path}" leads out of the data set\'s folder: move the picture into it, or put a '
                         "symbolic link there")
    return folder / path


def fields_of(domains: tuple[str, ...]) -> dict[str, str]:
    """What the metadata calls the picture of each domain."""
    return {domain: f"annotation_{NAMES.get(domain, domain)}" if place else "image"
            for place, domain in enumerate(domains)}


def size_of(line: bytes, name: str) -> tuple[int, int]:
    """(height, width) that a line of metadata tells."""
    try:
        info = json.loads(line)["info"]
        height, width = int(info["height"]), int(info["width"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{name}: no object with info.height and info.width ({error!r}); was the file cut "
                         "short?") from None
    if min(height, width) < 1:
        raise ValueError(f"{name}: a picture of {width}x{height} pixels")
    return height, width


def captions_of(entry: dict, name: str) -> dict[str, str]:
    captions = entry.get("caption") or {}
    if not isinstance(captions, dict):
        raise ValueError(f'{name}: caption is {captions!r}, but must be an object such as {{"mine": "a dog"}}')
    return captions

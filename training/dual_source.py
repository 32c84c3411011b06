"""Pictures with captions or conversations as training samples of Dual Diffusion."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from jodi_core.dual_diffusion.pictures import shard_square, tuning_square
from jodi_core.dual_diffusion.roles import IMAGE
from jodi_core.pictures import fit_for_training, read_picture

from .caches import Store, key_of
from .config import DataConfig, SetConfig, TrainConfig
from .dual_config import DualTrainingConfig
from .dual_encoders import DualEncoders
from .dual_texts import caption_text, conversation_text
from .faults import Faults
from .folders import Sample
from .lists import ListSet
from .order import TASK_KINDS
from .pictures import PictureSource
from .samples import Samples
from .shards import Member
from .source import Item

LONGEST = 4    # times the shorter side
SQUARES: dict[str, Callable[[Image.Image, int], Tensor]] = {    # how pictures of a kind of set become squares
    "list": lambda picture, side: fit_for_training(picture, (side, side)),
    "shard": shard_square,
    "conversation": tuning_square,
}


@dataclass(frozen=True)
class Square:
    """A picture file, and how a square is made of it: a key of SQUARES."""

    file: Path | Member
    way: str


class DualSamples:
    """Those of all data sets that have captions, for pictures; and all of them, for texts."""

    def __init__(self, data: DataConfig, side: int):
        self.base = Samples(data, (IMAGE,), {1.0: (side, side)})
        self.side, self.places, kinds = side, [], []
        for kind, task in enumerate(TASK_KINDS):
            for place, (which, index) in enumerate(self.base.places):
                if serves(data.sets[which], self.base.sets[which], index, task, data.min_side):
                    self.places.append(place)
                    kinds.append(kind)
        if not self.places:
            raise ValueError(f"no picture of the data sets is at least {data.min_side} pixels on its shorter side "
                             f"(data.min_side) and at most {LONGEST} times as long as that")
        self.bins_N, self.weights_N = torch.tensor(kinds), self.base.weights_N[self.places]

    def __len__(self) -> int:
        return len(self.places)

    def target(self, index: int) -> tuple[int, int]:
        return self.side, self.side

    def task(self, index: int) -> str:
        return TASK_KINDS[int(self.bins_N[index])]

    def sample(self, index: int) -> Sample:
        sample = self.base.sample(self.places[index])
        return replace(sample, pictures={name: Square(file, way_of(sample, file))
                                         for name, file in sample.pictures.items()})


def serves(config: SetConfig, one, index: int, task: str, min_side: int) -> bool:
    """Whether a sample of a data set is for a task. No picture is made of a conversation; small and long ones of others
    are left out."""
    if config.tasks and task not in config.tasks:
        return False
    if isinstance(one, ListSet) and one.of_conversations:
        return task == "text"
    short, long = sorted(one.sizes[index])
    return short >= min_side and long <= LONGEST * short


def way_of(sample: Sample, file: Path | Member) -> str:
    return "conversation" if sample.turns else "shard" if isinstance(file, Member) else "list"


class DualSource(PictureSource):
    """Latents are kept in a store; texts are not, as their states depend on the blanks."""

    def __init__(self, config: TrainConfig, model: DualTrainingConfig, encoders: DualEncoders, rank: int = 0):
        self.data, self.model, self.encoders, self.domains = config.data, model, encoders, (IMAGE,)
        self.samples = DualSamples(config.data, model.side)
        self.bins_N, self.weights_N = self.samples.bins_N, self.samples.weights_N
        self.faults = Faults(config.output)
        self.store = Store(Path(config.data.cache), rank) if config.data.cache else None
        if self.store:
            self.picture_encoder = encoders.identity("autoencoder", self.store.digest)

    def read(self, index: int, generator: torch.Generator) -> Item:
        sample = self.samples.sample(index)
        self.check(sample)
        latent_CHW = self.latent(sample, IMAGE, self.samples.target(index))
        return Item(latent_CHW[:, None], torch.tensor([True]), self.text(sample, self.samples.task(index), generator),
                    sample.name)

    def text(self, sample: Sample, task: str, generator: torch.Generator) -> Tensor:
        """(L, 2); of a conversation the turns from one on that is drawn by lot, as many as fit."""
        words = self.encoders.words
        if sample.turns:
            first = int(torch.randint(len(sample.turns), (), generator=generator))
            return conversation_text(words, sample.turns[first:], self.model.text_length)
        length = self.model.length if task == "picture" else self.model.text_length
        return caption_text(words, sample.choose_caption(generator), length)

    def caption(self, caption: str) -> None:
        """Nothing to store."""

    def picture_key(self, square: Square, domain: str, target: tuple[int, int]) -> str | None:
        if self.store is None:
            return None
        content = square.file.sha256 if isinstance(square.file, Member) else self.store.digest(square.file)
        return key_of("picture", content, target, square.way, self.picture_encoder)

    def picture(self, square: Square, domain: str, target: tuple[int, int]) -> Tensor:
        picture = read_picture(BytesIO(square.file.read_bytes()), str(square.file))
        return SQUARES[square.way](picture, target[0])

    def encode(self, picture_B3HW: Tensor) -> Tensor:
        return self.encoders.latents(picture_B3HW)

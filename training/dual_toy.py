"""Toy scenes for Dual Diffusion: latents of the picture, encoded once, and texts that are made anew in every step."""

import random
from pathlib import Path

import torch
from torch import Tensor

from jodi_core.autoencoders import DeepAutoencoder
from jodi_core.dual_diffusion.roles import IMAGE

from .captions import caption, vary
from .config import TrainConfig
from .dual_encoders import DualEncoders
from .dual_texts import caption_text, conversation_text
from .order import TASK_KINDS
from .questions import choose_questions
from .scene import sample_scene
from .source import Item
from .toy import build_cache, load_latents

TURNS = 4    # questions in a text, at most


def cache_toys(config: TrainConfig, encoders: DualEncoders, part: int, parts: int) -> None:
    """ValueError for an autoencoder of pictures of another kind."""
    if not isinstance(encoders.autoencoder, DeepAutoencoder):
        raise ValueError('toy scenes are encoded by the autoencoder of a Jodi: set start.autoencoder = "tiny"')
    build_cache(config.toy, (IMAGE,), encoders.autoencoder.model, None, part, parts)


class ToyTexts:
    """Every scene once to be drawn after its caption, and once to be written about: a caption, or questions."""

    weights_N = None

    def __init__(self, config: TrainConfig, encoders: DualEncoders):
        self.first_seed, self.words, self.model = config.toy.first_seed, encoders.words, encoders.model
        size, = config.toy.sizes()
        self.latents_NCHW = load_latents(Path(config.toy.cache) / f"{size[0]}x{size[1]}")[:, 0]
        self.bins_N = torch.arange(len(TASK_KINDS)).repeat_interleave(len(self.latents_NCHW))

    def name(self, index: int) -> str:
        return f"toy scene {index % len(self.latents_NCHW)}"

    def item(self, index: int, generator: torch.Generator) -> Item:
        task, place = TASK_KINDS[int(self.bins_N[index])], index % len(self.latents_NCHW)
        rng = random.Random(int(torch.randint(2 ** 31, (), generator=generator)))
        text_L2 = self.text(task, self.first_seed + place, rng)
        return Item(self.latents_NCHW[place][:, None].float(), torch.tensor([True]), text_L2, self.name(index))

    def text(self, task: str, seed: int, rng: random.Random) -> Tensor:
        """Captions to draw after are worded freely, those to be written are not."""
        scene = sample_scene(seed)
        if task == "picture":
            return caption_text(self.words, vary(caption(scene, rng.getrandbits(31)), rng), self.model.length)
        if rng.random() < 0.5:
            return caption_text(self.words, caption(scene, rng.getrandbits(31), shorten=0), self.model.text_length)
        return conversation_text(self.words, choose_questions(scene, rng.randint(1, TURNS), rng),
                                 self.model.text_length)

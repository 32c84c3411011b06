"""Toy scenes as latents and text features, encoded once into shards on disk, and the order in which they are read."""

import os
import time
from pathlib import Path
from random import Random

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .captions import caption, vary
from .config import ToyConfig, TrainConfig
from .source import Item
from .world import render, sample_scene

SHARD = 1024    # scenes per file


@torch.no_grad()
def encode_scenes(scenes, size, autoencoder, domains) -> Tensor:
    """Scaled latents (B, D, C, h, w) float16 of rendered scenes."""
    pictures = render(scenes, *size)
    latents = [autoencoder.encode(pictures[name].float() / 127.5 - 1) for name in domains]
    return torch.stack(latents, dim=1).mul(autoencoder.config.scaling_factor).half()


def encode_captions(scenes, first_seed, per_scene, text) -> tuple[Tensor, Tensor]:
    """Features (tokens of all captions, width) float16 at true length, and their lengths (scenes * per_scene,)."""
    numbers = range(first_seed * per_scene, (first_seed + len(scenes)) * per_scene)
    captions = [vary(caption(scenes[number // per_scene - first_seed], number), Random(number)) for number in numbers]
    features, lengths = text.encode(captions)
    return torch.cat([row[:length] for row, length in zip(features, lengths)]).half(), lengths


def write_shard(path: Path, seeds: range, size, domains, config: ToyConfig, autoencoder, text) -> None:
    """Render and encode one shard; it appears under its name only when it is complete."""
    parts = []
    for start in range(seeds.start, seeds.stop, 32):
        scenes = [sample_scene(seed) for seed in range(start, min(start + 32, seeds.stop))]
        tensors = {"latents": encode_scenes(scenes, size, autoencoder, domains)}
        if text is not None:
            tensors |= zip(("text", "lengths"), encode_captions(scenes, start, config.captions_per_scene, text))
        parts.append(tensors)
    temporary = path.with_suffix(".writing")
    save_file({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, temporary)
    os.replace(temporary, path)


def build_cache(config: ToyConfig, domains, autoencoder, text, part: int = 0, parts: int = 1) -> None:
    """Write the missing shards of every size; process `part` of `parts` takes every parts-th one.

    text: None for latents alone.
    """
    for size, share in config.sizes().items():
        folder = Path(config.cache) / f"{size[0]}x{size[1]}"
        folder.mkdir(parents=True, exist_ok=True)
        for shard in range(part, max(1, round(config.scenes * share / SHARD)), parts):
            path = folder / f"{shard:05d}.safetensors"
            if path.exists():
                continue
            start, first = time.time(), config.first_seed + shard * SHARD
            write_shard(path, range(first, first + SHARD), size, domains, config, autoencoder, text)
            print(f"{path}: {SHARD} scenes in {time.time() - start:.0f} s", flush=True)


def cache_toys(config: TrainConfig, encoders, part: int, parts: int) -> None:
    build_cache(config.toy, config.model.domains, encoders.autoencoder, encoders.text, part, parts)


def open_toys(config: TrainConfig, encoders) -> "ToyScenes":
    return ToyScenes(config.toy)


class ToyScenes:
    """All shards of all sizes as a training source, in memory. The scenes have every label."""

    weights_N = None

    def __init__(self, config: ToyConfig):
        self.captions_per_scene = config.captions_per_scene
        sizes = [load_shards(Path(config.cache) / f"{height}x{width}") for height, width in config.sizes()]
        self.latents = [latents for latents, _, _ in sizes]
        self.bins_N = torch.cat([torch.full((len(latents),), number) for number, latents in enumerate(self.latents)])
        self.place_N = torch.cat([torch.arange(len(latents)) for latents in self.latents])
        self.texts = [(text, lengths.cumsum(0) - lengths, lengths) for _, text, lengths in sizes]

    def name(self, index: int) -> str:
        return f"toy scene {index}"

    def item(self, index: int, generator: torch.Generator) -> Item:
        number, place = int(self.bins_N[index]), int(self.place_N[index])
        text, starts, lengths = self.texts[number]
        row = place * self.captions_per_scene + int(torch.randint(self.captions_per_scene, (), generator=generator))
        latents_CLHW = self.latents[number][place].float().transpose(0, 1)
        return Item(latents_CLHW, torch.ones(latents_CLHW.shape[1], dtype=torch.bool),
                    text[starts[row]:starts[row] + lengths[row]].float(), self.name(index))


def load_shards(folder: Path) -> list[Tensor]:
    """Latents (N, L, C, h, w), text features of all captions one after the other, their lengths."""
    return [torch.cat(parts) for parts in zip(*read_shards(folder, "latents", "text", "lengths"))]


def load_latents(folder: Path) -> Tensor:
    """(N, L, C, h, w), of shards that may hold nothing else."""
    return torch.cat([latents for latents, in read_shards(folder, "latents")])


def read_shards(folder: Path, *names: str) -> list[list[Tensor]]:
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"no encoded scenes in {folder}: run `python -m training cache CONFIG` first")
    shards = []
    for path in paths:
        with safe_open(path, "pt") as shard:
            shards.append([shard.get_tensor(name) for name in names])
    return shards

"""Toy scenes as latents and text features, encoded once into shards on disk, and the order in which they are read."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .captions import caption, vary
from .config import DataConfig
from .world import render, sample_scene

SHARD = 1024    # scenes per file
TURNS = 1000    # batches in which every size has exactly its share


@dataclass(frozen=True)
class Batch:
    latents_BCDHW: Tensor    # float32, scaled, all domains of the model
    text_BMC: Tensor
    mask_BM: Tensor          # bool, True = valid


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


def write_shard(path: Path, seeds: range, size, domains, config: DataConfig, autoencoder, text) -> None:
    """Render and encode one shard; it appears under its name only when it is complete."""
    parts = []
    for start in range(seeds.start, seeds.stop, 32):
        scenes = [sample_scene(seed) for seed in range(start, min(start + 32, seeds.stop))]
        features, lengths = encode_captions(scenes, start, config.captions_per_scene, text)
        parts.append((encode_scenes(scenes, size, autoencoder, domains), features, lengths))
    latents, features, lengths = (torch.cat(column) for column in zip(*parts))
    temporary = path.with_suffix(".writing")
    save_file({"latents": latents, "text": features, "lengths": lengths}, temporary)
    os.replace(temporary, path)


def build_cache(config: DataConfig, domains, autoencoder, text, part: int = 0, parts: int = 1) -> None:
    """Write the missing shards of every size; process `part` of `parts` takes every parts-th one."""
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


class CachedScenes:
    """All shards of one size, in memory."""

    def __init__(self, folder: Path, captions_per_scene: int):
        shards = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
        if not shards:
            raise FileNotFoundError(f"no encoded scenes in {folder}: run `python -m training cache CONFIG` first")
        self.latents = torch.cat([shard["latents"] for shard in shards])
        self.text = torch.cat([shard["text"] for shard in shards])
        self.lengths = torch.cat([shard["lengths"] for shard in shards])
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.captions_per_scene = captions_per_scene

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, index: Tensor, which_caption: int) -> Batch:
        rows = index * self.captions_per_scene + which_caption % self.captions_per_scene
        texts = [self.text[start:start + length] for start, length in zip(self.starts[rows], self.lengths[rows])]
        text = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True).float()
        mask = torch.arange(text.shape[1]) < self.lengths[rows][:, None]
        return Batch(self.latents[index].float().transpose(1, 2), text, mask)


class SceneOrder:
    """Which scenes step number s reads: a fixed function of (seed, s), so that a resumed run reads the same ones.

    Each size is read in passes; a pass is a new permutation. Process `rank` of `world` takes every world-th batch.
    The sizes take turns in a fixed pattern, in which each has its share.
    """

    def __init__(self, config: DataConfig, seed: int, rank: int, world: int):
        sizes = config.sizes()
        self.sets = [CachedScenes(Path(config.cache) / f"{h}x{w}", config.captions_per_scene) for h, w in sizes]
        shares = torch.tensor(list(sizes.values()))
        counts = (shares / shares.sum() * TURNS).round().int().clamp_min(1)
        turns = torch.arange(len(sizes)).repeat_interleave(counts)
        self.turns = turns[torch.randperm(len(turns), generator=torch.Generator().manual_seed(seed))]
        self.seed, self.rank, self.world = seed, rank, world

    def batch(self, number: int, size: int) -> Batch:
        """The `number`-th batch of `size` scenes of this process."""
        cycle, turn = divmod(number * self.world + self.rank, len(self.turns))
        whose = self.turns == self.turns[turn]
        scenes = self.sets[int(self.turns[turn])]
        earlier = cycle * int(whose.sum()) + int(whose[:turn].sum())    # batches of this size before this one
        which_pass, place = divmod(earlier, len(scenes) // size)
        order = torch.Generator().manual_seed(self.seed + which_pass)
        index = torch.randperm(len(scenes), generator=order)[place * size:][:size]
        return scenes.batch(index, which_pass)

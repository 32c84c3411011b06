"""A run small enough for tests: made-up latents and captions in cache shards, and a text encoder that needs no file.

Also a program, for runs of several processes: toy_run.py FOLDER STEPS.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jodi_core.models.jodi import JodiConfig  # noqa: E402
from training import loop  # noqa: E402
from training.config import DataConfig, OptimConfig, TrainConfig  # noqa: E402

MODEL = JodiConfig(domains=("image", "depth", "edge"), hidden_size=32, depth=2, num_heads=2, in_channels=4,
                   input_size=4, caption_channels=8, model_max_length=6, y_norm_scale_factor=1.0,
                   bins={1.0: (32, 32), 0.5: (16, 32)})


class FakeText:
    def encode_negative(self, prompts, rows):
        return torch.linspace(-1, 1, rows * 8).view(1, rows, 8)


def write_shard(path: Path, scenes: int, size: tuple[int, int], first: int = 0) -> None:
    """A shard whose latents hold the number of their scene, and whose captions that of their caption."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(first)
    latents = torch.randn(scenes, 3, 4, *size, generator=generator)
    latents[:, 0, 0, 0, 0] = torch.arange(first, first + scenes)
    lengths = torch.randint(2, 6, (2 * scenes,), generator=generator)
    text = torch.randn(int(lengths.sum()), 8, generator=generator)
    text[lengths.cumsum(0) - lengths, 0] = torch.arange(2 * first, 2 * (first + scenes)).float()
    save_file({"latents": latents.half(), "text": text.half(), "lengths": lengths}, path)


def toy_config(folder: Path, **changes) -> TrainConfig:
    """A configuration of a few steps, its cache written."""
    cache = folder / "cache"
    if not cache.exists():
        write_shard(cache / "32x32" / "00000.safetensors", 40, (4, 4))
        write_shard(cache / "16x32" / "00000.safetensors", 10, (2, 4))
    data = DataConfig(cache=str(cache), bins={"32x32": 0.8, "16x32": 0.2})
    return replace(TrainConfig(
        output=str(folder / "run"), steps=6, batch=2, log_every=2, probe_every=4, save_every=2, average_every=3,
        model=MODEL, data=data, optim=OptimConfig(warmup=2, ema=0.9)), **changes)


def main() -> None:
    """Writes rankN.pt: all weights of process N before and after they were last averaged."""
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    average_weights = loop.average_weights

    def all_weights(model):
        return torch.nn.utils.parameters_to_vector(model.parameters()).detach()

    def recorded(model, world):
        before = all_weights(model)
        average_weights(model, world)
        torch.save((before, all_weights(model)), folder / f"rank{rank}.pt")
    loop.average_weights = recorded
    loop.load_text = lambda *arguments, **keywords: FakeText()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    loop.train(toy_config(folder, steps=int(sys.argv[2])), rank, int(os.environ["WORLD_SIZE"]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

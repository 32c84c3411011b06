"""A Dual Diffusion run small enough for tests: made-up latents and texts, random networks that need no file.

Also a program: dual_run.py FOLDER [kill=STEP] trains; under torchrun it trains in FOLDER/copies and, with shards of the
model, in FOLDER/shards.
"""

import sys
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import torch

from toy_run import kill_at, toy_config

from jodi_core.dual_diffusion.t5 import T5Sizes, T5States
from training import run
from training.config import SpeedConfig, StartConfig, TrainConfig
from training.dual_config import DualTrainingConfig
from training.families import FAMILY
from training.parallel import Processes
from training.source import Item

MODEL = DualTrainingConfig(
    vocab_size=20, sample_size=4, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
    num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=16, pos_embed_max_size=2, side=32, length=6,
    text_length=8)
SCENES = 24


class Texts:
    """Latents with texts that follow from them; for both tasks."""

    bins_N, weights_N = torch.arange(2).repeat_interleave(SCENES), None

    def __init__(self, *ignored):
        pass

    def name(self, index):
        return f"sample {index}"

    def item(self, index, generator):
        kind, number = divmod(index, SCENES)
        latents = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(number)) + number % 3
        length = MODEL.text_length if kind else MODEL.length
        words = torch.tensor([4 + number % 3, 7 + number % 2, 10] + [1] * (length - 3))
        label = torch.ones(length, dtype=torch.long)
        label[0] = 1 - kind
        return Item(latents, torch.tensor([True]), torch.stack([words, label], 1), f"sample {index}")


class FakeParts:
    """Stands for the encoders of a run."""

    autoencoder = SimpleNamespace(channels=4, factor=8)
    words = SimpleNamespace(prompt=lambda text, length: [1] * length)

    def __init__(self, *ignored):
        pass

    @cached_property
    def t5(self):
        return T5States.from_state_dict(t5_tensors())


def t5_tensors() -> dict[str, torch.Tensor]:
    from transformers import T5Config, T5EncoderModel
    sizes = T5Sizes(MODEL.vocab_size, MODEL.joint_attention_dim, 8, 16, 1, 2, 8)
    torch.manual_seed(5)
    model = T5EncoderModel(T5Config(**vars(sizes), feed_forward_proj="gated-gelu", is_decoder=False))
    return {name: value for name, value in model.state_dict().items() if name != "encoder.embed_tokens.weight"}


def dual_config(folder: Path, **changes) -> TrainConfig:
    start = StartConfig(kind="nothing", gate=1.0, autoencoder="fake", text_encoder="fake")
    settings = {"start": start, "model": MODEL, "tasks": ("picture", "text")} | changes
    return toy_config(folder, family="dual_diffusion", **settings)


def use_parts(patch=setattr) -> None:
    patch(run, "open_source", Texts)
    patch(run, "open_encoders", FakeParts)


def fresh(**changes):
    config = dual_config("unused", **changes)
    model = FAMILY["dual_diffusion"].make_model(config, FakeParts())
    FAMILY["dual_diffusion"].choose_trained(model, config)
    return model


def main() -> None:
    folder, options = Path(sys.argv[1]), dict(word.split("=") for word in sys.argv[2:])
    use_parts()
    if "kill" in options:
        kill_at(int(options["kill"]), "")
    torch.set_num_threads(1)
    processes = Processes.start("cpu")
    if processes.world == 1:
        run.train(dual_config(folder, mode="text_encoder"), processes)
    else:
        for name in ("copies", "shards"):
            speed = SpeedConfig(device="cpu", precision="float32", shard=name == "shards")
            run.train(replace(dual_config(folder / name, mode="text_encoder"), speed=speed), processes)
    processes.close()


if __name__ == "__main__":
    main()

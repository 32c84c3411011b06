"""A run small enough for tests: made-up samples, a text encoder that needs no file.

Also a program: toy_run.py FOLDER [steps=N] [shard] [optim=NAME] [kill=STEP[:save]] ... trains, alone or under torchrun,
and may kill itself in the middle.
"""

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

sys.path.append(str(Path(__file__).resolve().parents[2]))

from jodi_core.models.jodi import JodiConfig  # noqa: E402
from training import checkpoint, run  # noqa: E402
from training.config import (EvaluationConfig, FaultsConfig, OptimConfig, SaveConfig, SetConfig,  # noqa: E402
                             SpeedConfig, StartConfig, TrainConfig, WatchConfig)
from training.evaluate import Evaluator  # noqa: E402
from training.parallel import Processes  # noqa: E402
from training.source import Item  # noqa: E402
from training.watch import SPEED  # noqa: E402

MODEL = JodiConfig(domains=("image", "depth", "edge"), hidden_size=32, depth=2, num_heads=2, in_channels=4,
                   input_size=4, caption_channels=8, model_max_length=6, y_norm_scale_factor=1.0,
                   bins={1.0: (32, 32), 0.5: (16, 32)})
SQUARE, WIDE = 40, 10    # samples
ADAMW = OptimConfig(lr=1e-2, warmup=2, eps=1e-3)    # gradients of nothing stay nothing
OPTIMIZERS = {optim.name: optim for optim in (
    ADAMW, OptimConfig(name="adamw_8bit", lr=1e-2, warmup=2, min_8bit=64),
    OptimConfig(name="came", lr=1e-3, warmup=2, betas=(0.9, 0.999, 0.9999)),
    OptimConfig(name="came_8bit", lr=1e-3, warmup=2, betas=(0.9, 0.999, 0.9999), min_8bit=64, block_rows=10),
    OptimConfig(name="prodigy", lr=1.0, warmup=2), OptimConfig(name="muon", lr=1e-2, warmup=2))}


class ToySource:
    """Latents that hold the number of their sample; every third sample has no edges."""

    bins_N, weights_N = torch.tensor([0] * SQUARE + [1] * WIDE), None

    def name(self, index):
        return f"sample {index}"

    def item(self, index, generator):
        own = torch.Generator().manual_seed(index)
        latents = torch.randn(4, 3, *((4, 4) if index < SQUARE else (2, 4)), generator=own)
        latents[0, 0, 0, 0] = index
        caption = int(torch.randint(2, (), generator=generator))
        return Item(latents, torch.tensor([True, True, index % 3 > 0]), torch.randn(2 + index % 4, 8, generator=own)
                    + caption, f"sample {index}")


@dataclass
class SpoiltSource(ToySource):
    """One sample has a value that it should not have."""

    index: int
    value: float

    def item(self, index, generator):
        item = super().item(index, generator)
        if index == self.index:
            item.latents_CLHW[1] = self.value
        return item


class FakeText:
    """Stands for the encoders of a run."""

    def __init__(self, *ignored):
        self.text = self

    def encode_negative(self, prompts, rows=6):
        return torch.linspace(-1, 1, rows * 8).view(1, rows, 8)


def toy_config(folder: Path, **changes) -> TrainConfig:
    return replace(TrainConfig(
        output=str(folder), steps=6, batch=4, micro_batch=2, ema=0.9, in_turn=True, model=MODEL,
        start=StartConfig(kind="nothing", gate=1.0), optim=ADAMW,
        speed=SpeedConfig(device="cpu", precision="float32"), save=SaveConfig(every=2, keep=2),
        watch=WatchConfig(every=1, tensorboard=False)), **changes)


def use_toy_parts(patch=setattr) -> None:
    patch(run, "open_source", lambda *arguments: ToySource())
    patch(run, "Encoders", FakeText)


def lines(folder: Path) -> dict[int, dict]:
    """Step -> what the log says of it, but speed and memory."""
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert len({line["step"] for line in found}) == len(found), "a step was told twice"
    return {line["step"]: {key: value for key, value in line.items() if key not in SPEED} for line in found}


def stored(folder: Path) -> dict:
    """Everything in the newest checkpoint of a run, by name."""
    state = checkpoint.checkpoints(folder)[-1][1] / "state"
    reader = dcp.FileSystemReader(state)
    found = {name: torch.empty(entry.size, dtype=entry.properties.dtype) if hasattr(entry, "size") else None
             for name, entry in reader.read_metadata().state_dict_metadata.items()}
    dcp.load(found, storage_reader=reader, no_dist=True)
    return found


def evaluate_toys(patch=setattr) -> None:
    """Losses of some samples; there are no pictures of them."""
    patch(run, "open_evaluator", lambda config, model, encoders, processes: Evaluator(
        replace(config, evaluation=EvaluationConfig(every=2, sets=(SetConfig(path="toys"),), samples=7, pictures=0)),
        ToySource(), processes))


def kill_at(step: int, where: str) -> None:
    """End this process without a word: after `step` optimiser steps, or while their checkpoint is written."""
    finish, after_step = checkpoint.finish, run.Watcher.after_step

    def die_after(watcher, state, *rest):
        after_step(watcher, state, *rest)
        if state.step == step and not where:
            os._exit(9)

    def die_before(temporary, target):
        if target.name.endswith(f"{step:07d}") and where == "save":
            os._exit(9)
        finish(temporary, target)
    run.Watcher.after_step, checkpoint.finish = die_after, die_before


def main() -> None:
    options = dict(word.partition("=")[::2] for word in sys.argv[2:])
    use_toy_parts()
    faults = FaultsConfig()
    if "nan" in options:
        faults = FaultsConfig(on_nan="skip")
        run.open_source = lambda *ignored: SpoiltSource(int(options["nan"]), torch.nan)
    if "evaluate" in options:
        evaluate_toys()
    if "kill" in options:
        step, _, where = options["kill"].partition(":")
        kill_at(int(step), where)
    torch.set_num_threads(1)
    processes = Processes.start("cpu")
    speed = SpeedConfig(device="cpu", precision=options.get("precision", "float32"), shard="shard" in options,
                        workers=int(options.get("workers", 0)))
    steps, batch, micro_batch = (int(options.get(name, default)) for name, default in (
        ("steps", 6), ("batch", 4), ("micro_batch", 2)))
    run.train(toy_config(Path(sys.argv[1]), steps=steps, batch=batch, micro_batch=micro_batch, speed=speed,
                         faults=faults, in_turn="own" not in options,
                         optim=OPTIMIZERS[options.get("optim", "adamw")]), processes)
    processes.close()


if __name__ == "__main__":
    main()

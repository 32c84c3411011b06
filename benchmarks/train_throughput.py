"""Training speed and memory with caches beside the published recipe, which encodes pictures and captions in every step.

    python benchmarks/train_throughput.py --size tiny [--output FILE.md]
    python benchmarks/train_throughput.py --size full

One model, one optimiser and one set of samples; the ways take turns, a few steps each, and the table gives medians.
Memory is measured in a process of its own per way. `full` has the published sizes with random weights and needs a GPU.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import process_peak  # noqa: E402
from jodi_core.models.dcae import DCAE  # noqa: E402
from jodi_core.models.dcae_config import DCAEConfig  # noqa: E402
from jodi_core.models.jodi_config import JodiConfig  # noqa: E402
from jodi_core.text import GemmaText, TextConfig, build_gemma  # noqa: E402
from training import loop, run  # noqa: E402
from training.batches import Batches  # noqa: E402
from training.config import (DataConfig, OptimConfig, SaveConfig, SetConfig, SpeedConfig, StartConfig,  # noqa: E402
                             TrainConfig, WatchConfig)
from training.data import MicroBatches  # noqa: E402
from training.encoders import Encoders  # noqa: E402
from training.faults import Faults  # noqa: E402
from training.filling import fill  # noqa: E402
from training.finite import Finite  # noqa: E402
from training.model import make_model  # noqa: E402
from training.order import BatchOrder  # noqa: E402
from training.parallel import Processes  # noqa: E402
from training.watch import Watcher  # noqa: E402
from training.world import write_dataset  # noqa: E402

GEMMA_2B = TextConfig(vocab_size=256_000, hidden_size=2304, intermediate_size=9216, num_hidden_layers=26,
                      num_attention_heads=8, num_key_value_heads=4, prefix="", max_length=300)
WAYS = {"published recipe": {"cache": False, "in_turn": False},
        "with caches": {"cache": True, "in_turn": False},
        "with caches, one task per pass": {"cache": True, "in_turn": True}}


class RandomEncoders(Encoders):
    """Of the published sizes; what they compute means nothing, how long it takes does."""

    @property
    def autoencoder(self) -> DCAE:
        if "network" not in self.__dict__:
            self.network = DCAE(DCAEConfig()).to(self.device).eval().requires_grad_(False)
        return self.network

    @property
    def text(self) -> GemmaText:
        if "gemma" not in self.__dict__:
            tokenizer = Encoders(StartConfig(text_encoder="tiny"), torch.device("cpu")).text.tokenizer
            model = build_gemma(GEMMA_2B, device=self.device, dtype=self.text_dtype)
            self.gemma = GemmaText(GEMMA_2B, model, tokenizer.serialized_model_proto())
        return self.gemma

    def identity(self, kind: str, digest) -> str:
        return f"random {kind}"


@dataclass
class Way:
    """One way to train the common model."""

    config: TrainConfig
    batches: Batches
    finite: Finite
    watcher: Watcher

    def steps(self, trained: loop.Run, processes: Processes, count: int) -> float:
        """Samples per second of some optimiser steps."""
        synchronise(processes.device)
        begun = time.perf_counter()
        with processes.kernels():
            for _ in range(count):
                loop.step(self.config, trained, self.batches, self.config.accumulation(1), processes, self.watcher,
                          self.finite)
        synchronise(processes.device)
        return count * self.config.batch / (time.perf_counter() - begun)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def config_of(options, folder: Path) -> TrainConfig:
    """The published recipe (training/configs/reference.toml) on a folder of toy scenes."""
    full = options.size == "full"
    start = {"kind": "nothing"} if full else {"weights": "tiny", "autoencoder": "tiny", "text_encoder": "tiny"}
    return TrainConfig(
        output=str(folder / "run"), steps=10_000, batch=options.batch, micro_batch=options.micro_batch,
        start=StartConfig(**start), model=JodiConfig(), data=DataConfig(sets=(SetConfig(path=str(folder / "scenes")),)),
        optim=OptimConfig(name="came_8bit", lr=1e-6, betas=(0.9, 0.999, 0.9999), warmup=1, clip=0.1),
        speed=SpeedConfig(device="cuda" if full else "cpu", precision="bf16" if full else "float32",
                          recompute=1 if full else 0),
        save=SaveConfig(resume=False), watch=WatchConfig(every=1_000_000, tensorboard=False))


def prepare(options, folder: Path, names: list[str]) -> tuple[loop.Run, Processes, dict[str, Way]]:
    config = config_of(options, folder)
    processes = Processes.start(config.speed.device)
    make_encoders = RandomEncoders if options.size == "full" else Encoders
    encoders = make_encoders(config.start, processes.device)
    model = make_model(config, make_encoders(config.start, torch.device("cpu")))
    sources = {False: run.pictures_of(config, config.data.sets, model.config, encoders, processes)}
    if any(WAYS[name]["cache"] for name in names):
        cached = replace(config, data=replace(config.data, cache=str(folder / "cache")))
        filler = make_encoders(config.start, processes.device)
        fill(run.pictures_of(cached, config.data.sets, model.config, filler, processes), 0, 1)
        del filler
        sources[True] = run.pictures_of(cached, config.data.sets, model.config,
                                        make_encoders(config.start, processes.device), processes)
    trained = run.start(config, model, sources[False], encoders, processes)
    faults = Faults(config.output)
    ways = {}
    for name in names:
        source, own = sources[WAYS[name]["cache"]], replace(config, in_turn=WAYS[name]["in_turn"])
        order = BatchOrder(source.bins_N, own.batch, own.steps, own.seed, source.weights_N)
        ways[name] = Way(own, Batches(MicroBatches(source, order, own, model.config, processes), 0, faults),
                         Finite(own.faults, faults, 0), Watcher(own, processes))
    return trained, processes, ways


def peak_mb(device: torch.device) -> float:
    """10^6 bytes: of tensors on a GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return process_peak() / 1e6


def measure(options, folder: Path) -> list[str]:
    """Rows of the table."""
    trained, processes, ways = prepare(options, folder, list(WAYS))
    speeds = {name: [] for name in ways}
    for number in range(options.rounds + 1):    # the first round warms up
        for name, way in ways.items():
            speed = way.steps(trained, processes, options.steps)
            if number:
                speeds[name].append(speed)
        print(f"round {number} of {options.rounds}: " + ", ".join(f"{name} {found[-1]:.2f}" for name, found in
                                                                    speeds.items() if found), flush=True)
    first = statistics.median(speeds[next(iter(ways))])
    rows = []
    for name, found in speeds.items():
        median = statistics.median(found)
        rows.append(f"| {name} | {median:.2f} | {median / first:.2f} | {memory_of(name, folder)} |")
    return rows


def memory_of(name: str, folder: Path) -> str:
    """In a process of its own, on the samples and the cache that are there."""
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", name, "--folder", str(folder)],
                          capture_output=True, text=True)
    return done.stdout.split()[-1] if done.returncode == 0 else "failed"


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "full"), default="tiny")
    parser.add_argument("--batch", type=int, default=8, help="samples per step")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2, help="of a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    parser.add_argument("--only", choices=tuple(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.only:
        trained, processes, ways = prepare(options, options.folder, [options.only])
        ways[options.only].steps(trained, processes, options.steps)
        print(f"{peak_mb(processes.device):.0f}")
        return
    with tempfile.TemporaryDirectory() as folder:
        side = 1024 if options.size == "full" else 128
        write_dataset(Path(folder) / "scenes", options.scenes, 0, side, batch=4)
        rows = measure(options, Path(folder))
    device = torch.cuda.get_device_name() if options.size == "full" else f"CPU, {torch.get_num_threads()} thread(s)"
    table = "\n".join([f"{options.size} model, batch {options.batch} in parts of {options.micro_batch}, torch "
                       f"{torch.__version__}, {device}", "", "| | samples per second | ratio | peak memory, MB |",
                       "|---|---|---|---|", *rows])
    print(table)
    if options.output:
        options.output.write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Kills a small training run with SIGKILL at random moments, again and again, and compares what comes out, bit for bit,
with a run that nobody killed: the loss of every micro-batch of every step, and everything in the last checkpoint.

    python benchmarks/resume_soak.py --kills 100 [--seed S] [--processes 2] [--shard]

The run encodes pictures of toy scenes into a cache and trains on them with data-loader workers, on the CPU. When it is
through, another one begins in an empty folder, until there were enough kills. Most lives are forks of this process,
which saves seconds of imports; some are a new Python.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

sys.path.append(str(Path(__file__).resolve().parents[1]))

from jodi_core.models.jodi_config import JodiConfig  # noqa: E402
from training import checkpoint, loop, run  # noqa: E402
from training.config import (DataConfig, OptimConfig, SaveConfig, SetConfig, SpeedConfig, StartConfig,  # noqa: E402
                             TrainConfig, WatchConfig)
from training.encoders import Encoders  # noqa: E402
from training.losses import JointLoss  # noqa: E402
from training.parallel import Processes  # noqa: E402
from training.world import write_dataset  # noqa: E402

SCENES = 18
BINS = {1.0: (128, 128), 0.6: (96, 160)}
MODEL = JodiConfig(hidden_size=32, depth=2, num_heads=2, in_channels=32, input_size=8, caption_channels=128,
                   model_max_length=64, y_norm_scale_factor=1.0, bins=BINS)
PLACES = ("start", "cache", "step", "save")    # where a kill may fall
START, SAVE = 0.1, 0.35    # share of kills soon after the start; and in the 1st, 2nd or 3rd checkpoint of a life
LEFT = "left"              # marks unfinished checkpoints of former lives
FRESH = 0.15               # share of lives that are a new Python


@dataclass(frozen=True)
class Plan:
    folder: Path
    steps: int = 60
    processes: int = 1
    shard: bool = False
    workers: int = 2
    fresh: float = FRESH

    @property
    def scenes(self) -> Path:
        return self.folder / "scenes"

    def config(self, name: str) -> TrainConfig:
        return TrainConfig(
            output=str(self.folder / name / "run"), steps=self.steps, batch=4, micro_batch=2, ema=0.9, in_turn=True,
            start=StartConfig(kind="nothing", gate=1.0, autoencoder="tiny", text_encoder="tiny"), model=MODEL,
            data=DataConfig(sets=(SetConfig(path=str(self.scenes)),), cache=str(self.folder / name / "cache")),
            optim=OptimConfig(lr=1e-3, warmup=2),
            speed=SpeedConfig(device="cpu", precision="float32", workers=self.workers, shard=self.shard),
            save=SaveConfig(every=4, keep=2), watch=WatchConfig(every=1))


@dataclass
class Result:
    kills: Counter = field(default_factory=Counter)    # by place
    runs: int = 0
    compared: int = 0                                  # steps
    skipped: int = 0                                   # checkpoints that were not valid
    faults: list[str] = field(default_factory=list)    # what is not as in the run that nobody killed


# ---- one life, in processes of its own ----------------------------------------------------------------------------

def live(config: TrainConfig, folder: Path, rank: int, world: int, port: int) -> None:
    """Encode and train, or go on with it."""
    os.setpgid(0, 0)    # what is killed: this process and its workers
    with open(folder / "output.txt", "a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    if world > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1",
                          MASTER_PORT=str(port))
    torch.set_num_threads(1)
    processes = Processes.start("cpu")
    note_losses(folder / f"losses_{rank}.txt")
    run.prepare(config, processes)
    (folder / "encoded").touch()
    run.train(config, processes)
    processes.close()


def note_losses(path: Path) -> None:
    """A line per step of this process: its number, and the exact loss of every micro-batch."""
    losses, step = [], loop.step

    def after_forward(module, arguments, result):
        if isinstance(module, JointLoss):
            losses.append(float(result[0].detach()).hex())

    def noted_step(config, state, *rest):
        losses.clear()
        number = state.step
        step(config, state, *rest)
        with open(path, "a") as file:
            file.write(f"{number} {' '.join(losses)}\n")
    torch.nn.modules.module.register_module_forward_hook(after_forward)
    loop.step = noted_step


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def begin(plan: Plan, name: str, chance: random.Random) -> list:
    context = multiprocessing.get_context("spawn" if chance.random() < plan.fresh else "fork")
    folder, port = plan.folder / name, free_port()
    folder.mkdir(exist_ok=True)
    lives = [context.Process(target=live, args=(plan.config(name), folder, rank, plan.processes, port))
             for rank in range(plan.processes)]
    for one in lives:
        one.start()
    return lives


# ---- the killer -----------------------------------------------------------------------------------------------------

def written(folder: Path) -> int:
    """Bytes of the losses, or of the cache as long as it is not full: grows while something happens."""
    return sum(map(size, folder.glob("losses_*.txt" if (folder / "encoded").exists() else "cache/*")))


def size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:    # the database has just tidied up
        return 0


def saving(folder: Path) -> set[str]:
    """Names of unfinished checkpoints of this life."""
    return {path.name for path in folder.glob(f"run/{checkpoint.WRITING}*") if not (path / LEFT).exists()}


def await_moment(folder: Path, lives: list, chance: random.Random) -> None:
    """Returns at a random moment, or when the run is through."""
    kind, saves, before, seen = chance.random(), chance.randint(1, 3), written(folder), set()
    encoding = not (folder / "encoded").exists()
    at_start, at_save = kind < START, not encoding and START <= kind < START + SAVE
    while not at_start and any(one.is_alive() for one in lives):
        seen |= saving(folder)
        if (len(seen) >= saves if at_save else written(folder) != before):
            break
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 4.0 if at_start else 0.08 if at_save else 0.8 if encoding else 2.0))


def kill(lives: list) -> None:
    for one in lives:
        try:
            os.killpg(one.pid, signal.SIGKILL)
        except ProcessLookupError:    # it has no group yet, or is through
            one.kill()
    for one in lives:
        one.join()


def place(folder: Path, steps: int) -> str:
    """Where a kill fell, as the folder shows. steps: how many there were when the life began."""
    if unfinished := saving(folder):
        (folder / "run" / unfinished.pop() / LEFT).touch()
        return "save"
    if not (folder / "encoded").exists():
        return "cache" if written(folder) else "start"
    return "step" if lines(folder / "losses_0.txt") > steps else "start"


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def one_run(plan: Plan, name: str, result: Result, chance: random.Random, kills: int) -> None:
    """From an empty folder to the last step, killed until there were so many kills in all."""
    folder = plan.folder / name
    while True:
        steps = lines(folder / "losses_0.txt")
        lives = begin(plan, name, chance)
        if result.kills.total() < kills:
            await_moment(folder, lives, chance)
            if any(one.is_alive() for one in lives):
                kill(lives)
                result.kills[place(folder, steps)] += 1
                continue
        for one in lives:
            one.join()
        if any(one.exitcode for one in lives):
            raise SystemExit(f"{folder}: the run failed: {(folder / 'output.txt').read_text()[-3000:]}")
        return


# ---- comparing ------------------------------------------------------------------------------------------------------

def stored(config: TrainConfig) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint, by name."""
    folder = checkpoint.newest_valid(Path(config.output))
    reader = dcp.FileSystemReader(folder / "state")
    found = {name: torch.empty(entry.size, dtype=entry.properties.dtype)
             for name, entry in reader.read_metadata().state_dict_metadata.items() if hasattr(entry, "size")}
    dcp.load(found, storage_reader=reader, no_dist=True)
    return found


def compare_losses(plan: Plan, name: str, result: Result) -> None:
    """Of every step that any life of a run took, with those of the run "whole"."""
    for rank in range(plan.processes):
        file = f"losses_{rank}.txt"
        truth = set((plan.folder / "whole" / file).read_text().splitlines())
        found = (plan.folder / name / file).read_text().splitlines()
        result.compared += len(found)
        result.faults += [f"{name}, process {rank}: step {line}" for line in found if line not in truth]
        if truth - set(found):
            result.faults.append(f"{name}, process {rank}: steps are missing")


def compare(plan: Plan, name: str, result: Result) -> None:
    compare_losses(plan, name, result)
    truth, found = stored(plan.config("whole")), stored(plan.config(name))
    result.faults += [f"{name}: {tensor} differs" for tensor in truth.keys() | found.keys()
                      if tensor not in truth or tensor not in found or not torch.equal(truth[tensor], found[tensor])]
    result.skipped += (plan.folder / name / "output.txt").read_text().count("skipping ")
    result.runs += 1


def soak(plan: Plan, kills: int, seed: int = 0, tell=print) -> Result:
    """Runs until there were `kills` kills. What is not identical is left in the plan's folder."""
    result, chance = Result(), random.Random(seed)
    write_scenes(plan.scenes)
    Encoders(plan.config("whole").start, torch.device("cpu")).text    # imports what forks need
    one_run(plan, "whole", result, chance, 0)
    while result.kills.total() < kills:
        name = f"killed_{result.runs:03d}"
        one_run(plan, name, result, chance, kills)
        compare(plan, name, result)
        tell(f"{name}: {result.kills.total()} kills so far, {len(result.faults)} differences", flush=True)
        if not result.faults:
            shutil.rmtree(plan.folder / name)
    return result


def write_scenes(folder: Path) -> None:
    """A data set of two sizes: every third picture is cut to a wide one."""
    metadata = write_dataset(folder, SCENES, 0, 128)
    entries = [json.loads(line) for line in metadata.read_text().splitlines()]
    for entry in entries[::3]:
        entry["info"] = {"height": 96, "width": 160}
    metadata.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def table(plan: Plan, result: Result) -> str:
    form = "one process" if plan.processes == 1 else f"{plan.processes} processes"
    rows = [("run", f"{plan.steps} steps, {form}{', sharded' if plan.shard else ''}, {plan.workers} workers each"),
            ("kills", result.kills.total())]
    rows += [(f"  in {name}", result.kills[name]) for name in PLACES]
    rows += [("runs", result.runs), ("steps compared", result.compared),
             ("checkpoints skipped as invalid", result.skipped),
             ("result", f"{len(result.faults)} differences" if result.faults else "identical bit for bit")]
    return "\n".join(f"{name:32}{value}" for name, value in [*rows, *(("", fault) for fault in result.faults[:20])])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2))
    parser.add_argument("--shard", action="store_true", help="FSDP2 in place of copies of the model")
    parser.add_argument("--steps", type=int, default=60, help="of each run")
    parser.add_argument("--fresh", type=float, default=FRESH, help="share of lives that are a new Python")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    plan = Plan(Path(tempfile.mkdtemp(prefix="soak_")), options.steps, options.processes, options.shard,
                fresh=options.fresh)
    result = soak(plan, options.kills, options.seed)
    print(table(plan, result), flush=True)
    if result.faults:
        print(f"left in {plan.folder}")
    else:
        shutil.rmtree(plan.folder)
    return bool(result.faults)


if __name__ == "__main__":
    sys.exit(main())

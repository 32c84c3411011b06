"""Checkpoints: folders that are complete or do not exist, whatever is killed when.

    step_0001500/
      state/          model, optimisers, averaged weights (torch.distributed.checkpoint: any number of processes)
      run.json        step, configuration, versions
      manifest.json   size and sha256 of every file; written last

A checkpoint is written under another name, flushed to the disk and renamed.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException

from .faults import NO_ROOM, DiskFull

NAME = re.compile(r"step_(\d{7,})")
WRITING = ".writing_"
RESERVE = 256 << 20    # bytes that stay free on the disk
# In the text of what is raised where a file cannot be written to its end; torch hides the error's number.
FULL = ("inline_container", *(f"[Errno {number}]" for number in NO_ROOM))


def checkpoints(output: Path) -> list[tuple[int, Path]]:
    """(step, folder) of everything that looks like a checkpoint, oldest first."""
    found = ((NAME.fullmatch(folder.name), folder) for folder in output.glob("step_*"))
    return sorted((int(match[1]), folder) for match, folder in found if match)


def newest_valid(output: Path, tell=print) -> Path | None:
    """The newest checkpoint whose files are all there and whole. Says which ones it skipped, and why."""
    for _, folder in reversed(checkpoints(output)):
        fault = fault_of(folder)
        if fault is None:
            return folder
        tell(f"skipping {folder}: {fault}")
    return None


def fault_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None if nothing is."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return "it has no readable manifest, so it was not finished"
    for name, (size, digest) in manifest.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
        if sha256(path) != digest:
            return f"{name} is damaged"
    return None


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(output: Path, step: int, state: dict, run: dict, *, rank: int = 0, world: int = 1) -> Path:
    """Write the checkpoint of a step; every process calls it. All raise DiskFull if there is no room: nothing is lost.
    """
    target, temporary = output / f"step_{step:07d}", output / f"{WRITING}{step:07d}"
    needed = world * sum(tensor.nbytes for tensor in tensors_of(state))

    def begin():
        output.mkdir(parents=True, exist_ok=True)
        for old in output.glob(f"{WRITING}*"):
            shutil.rmtree(old)
        if shutil.disk_usage(output).free < needed + RESERVE:
            raise no_room(output, needed + RESERVE)
        temporary.mkdir()

    def end():
        (temporary / "run.json").write_text(json.dumps(run | {"step": step}, indent=1))
        finish(temporary, target)

    by_first(begin, rank, world)
    try:
        dcp.save(state, checkpoint_id=temporary / "state", no_dist=world == 1)    # all processes raise alike
        by_first(end, rank, world)
    except (CheckpointException, OSError) as error:
        if not any(sign in str(error) for sign in FULL):
            raise
        wait(world)    # nobody writes any more
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise no_room(output, needed) from error
    return target


def no_room(output: Path, needed: int) -> DiskFull:
    free = shutil.disk_usage(output).free
    held = "" if free < needed else " and a quota, or a limit of file sizes, that is reached"
    return DiskFull(f"a checkpoint needs {needed / 1e6:.1f} MB, but {output} has {free / 1e6:.1f} MB left{held}: make "
                    "room, or lower save.keep; the checkpoints so far are whole")


def by_first(work: Callable[[], None], rank: int, world: int) -> None:
    """Process 0 does something, the others wait. If it fails for want of room, all raise."""
    fault = None
    if rank == 0:
        try:
            work()
        except (DiskFull, OSError) as error:
            fault = error
    failed = torch.tensor(fault is not None, dtype=torch.int)
    if world > 1:
        dist.all_reduce(failed, dist.ReduceOp.MAX)
    if failed:
        raise fault or OSError(f"[Errno {NO_ROOM[0]}] process 0 could not write the checkpoint")


def tensors_of(state):
    if isinstance(state, dict):
        for value in state.values():
            yield from tensors_of(value)
    elif isinstance(state, torch.Tensor):
        yield getattr(state, "_local_tensor", state)


def finish(temporary: Path, target: Path) -> None:
    """Flush all files, write the manifest last, give the folder its name."""
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    manifest = {path.relative_to(temporary).as_posix(): (path.stat().st_size, sha256(path)) for path in files}
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
    for path in (*files, temporary / "manifest.json", temporary / "state", temporary):
        flush(path)
    if target.exists():    # an invalid one that was skipped on resuming
        shutil.rmtree(target)
    os.rename(temporary, target)
    flush(target.parent)


def flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load(folder: Path, state: dict, *, world: int = 1) -> dict:
    """Fill `state` in place from a checkpoint of any number of processes; returns its run.json."""
    dcp.load(state, checkpoint_id=folder / "state", no_dist=world == 1)
    return json.loads((folder / "run.json").read_text())


def prune(output: Path, keep: int, keep_every: int) -> None:
    """Remove old checkpoints but the newest `keep` and those of every `keep_every` steps."""
    for step, folder in checkpoints(output)[:-keep]:
        if not (keep_every and step % keep_every == 0):
            shutil.rmtree(folder)


def wait(world: int) -> None:
    if world > 1:
        dist.barrier()

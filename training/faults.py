"""What goes wrong in a run: noted in faults.jsonl of its folder, each fault once; and how the program ends."""

import errno
import json
from pathlib import Path

import torch

from jodi_core.domains import nearest_bin

NAME = "faults.jsonl"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFull(RuntimeError):
    """Something would not fit, or did not; what was there before is whole."""


class Unreadable(ValueError):
    """Samples cannot be read, and the configuration does not skip them."""


class WorkerDied(RuntimeError):
    """A data-loader worker, more often than the configuration allows."""


EXIT_CODES = {FloatingPointError: 3, torch.OutOfMemoryError: 4, DiskFull: 5, Unreadable: 6, WorkerDied: 7}


def exit_code(error: Exception) -> int | None:
    """None for an error that is no known fault of a run."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return EXIT_CODES[DiskFull]
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), None)


def tell_end(error: Exception, code: int) -> int:
    """Print the last line of a run that a fault ends; returns its exit code."""
    # Of an error in a worker, the last line says what it is.
    print(f"stopped, exit code {code}: {str(error).strip().splitlines()[-1]}", flush=True)
    return code


class Faults:
    """The notes of all processes and workers of a run; every process has its own object for the one file.

    A line is an object with `kind`, `message` and where it happened. A fault that is there already is neither noted
    nor told again.
    """

    def __init__(self, output: str | Path):
        self.path, self.known, self.read = Path(output) / NAME, set(), 0

    def note(self, kind: str, message: str, **where) -> None:
        self.total()
        if (kind, message) in self.known:
            return
        print(f"{kind}: {message}", flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as file:    # one write: lines of other processes stay whole
            file.write(json.dumps({"kind": kind, "message": message} | where).encode() + b"\n")

    def total(self) -> int:
        """How many different faults all processes have noted."""
        if self.path.exists():
            with open(self.path, "rb") as file:
                file.seek(self.read)
                lines = file.read().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith(b"\n")]
            self.known |= set(filter(None, map(parsed, whole)))
            self.read += sum(map(len, whole))
        return len(self.known)


def parsed(line: bytes) -> tuple[str, str] | None:
    """(kind, message); None for a line that a full disk cut short."""
    try:
        fault = json.loads(line)
        return fault["kind"], fault["message"]
    except ValueError:
        return None


def out_of_memory(config, run, batch, peak_gb: float, world: int) -> str:
    """What a run that ran out of memory was doing, and what would need less. batch: None while it was not read."""
    what = "reading samples"
    if batch:
        height, width = nearest_bin(*batch.latents_BCLHW.shape[-2:], run.model.config.bins)
        what = f"pictures of {width}x{height} and micro_batch {config.micro_batch}"
    advice = {
        f"micro_batch = {config.micro_batch // 2} (a step keeps its {config.batch} samples)": config.micro_batch > 1,
        "speed.recompute = 1": not config.speed.recompute,
        'optim.name = "adamw_8bit"': config.optim.name == "adamw" and not config.speed.shard,
        'optim.name = "came_8bit"': config.optim.name == "came" and not config.speed.shard,
        "speed.shard = true with in_turn = true": world > 1 and not config.speed.shard,
        'mode = "lora"': config.mode == "full" and config.start.kind != "nothing"}
    return (f"step {run.step}: out of memory with {what}, at a peak of {peak_gb:.1f} GB; the last checkpoint is whole; "
            f"less memory is needed with {', or with '.join(change for change, helps in advice.items() if helps)}")

"""Recorded numbers of the originals against ours: `python -m jodi_core.conformance DIR`.

DIR holds recordings in the layout of tests/golden/jodi. Every case found is computed and compared, one row each; the
exit status is 1 if a case fails, a file is unknown or incomplete, or nothing was run. Sub-folders are run as well.
"""

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from . import conformance_cases as cases
from . import conformance_dual as dual
from . import conformance_jointnet as jointnet
from . import conformance_models as models
from .conformance_cases import Recording, Row


class Family(NamedTuple):
    """Recordings of one kind: how they are called, the files of one (the first one must be there), what runs them."""

    name: str
    parts: tuple[str, ...]
    run: Callable[[Recording], Iterator[Row]] | None = None


PAIR = ("json", "safetensors")
# A file belongs to the first family that it matches. Those without a runner are left alone: they are the trainer's.
FAMILIES = (
    Family(r".+\.loss", PAIR),
    Family(r"optimizer.*", PAIR),
    Family(r"README", ("md",)),
    Family(r".+\.sampler", PAIR, models.sampler),
    Family(r".+\.pipeline", PAIR, models.pipeline),
    Family(r".+\.debug", ("safetensors",), models.debug),
    Family(r"model_.+", ("json", "weights.safetensors", "forward.safetensors"), models.forward),
    Family(r"dcae.*", ("json", "weights.safetensors", "cases.safetensors"), models.autoencoder),
    Family(r"posembed.*", PAIR, cases.position_tables),
    Family(r"postprocess.*", ("safetensors",), cases.post_processing),
    Family(r"sampler_toy.*", PAIR, cases.toy_sampler),
    Family(r"data_transform.*", ("safetensors",), cases.training_transform),
    Family(r"roles.*", ("json",), cases.roles),
    Family(r"geometry.*", ("json",), cases.geometry),
    Family(r"text.*", ("json",), cases.text),
    Family(r"jointnet.*", PAIR, jointnet.recorded),
    Family(r"published_state_dict_keys", ("json",), jointnet.keys),
    Family(r"golden.*", PAIR, dual.golden),
    Family(r"tokenization.*", ("json",), dual.tokenization),
)


def recognise(file_name: str) -> tuple[str, Family] | None:
    """(name of the recording, its family) of a file, or None."""
    for family in FAMILIES:
        parts = "|".join(re.escape(part) for part in family.parts)
        if found := re.fullmatch(rf"({family.name})\.(?:{parts})", file_name):
            return found[1], family
    return None


def check_folder(folder: Path, device: str = "cpu") -> Iterator[Row]:
    """A row per case of one folder, and failing rows for files that no case explains."""
    recordings = defaultdict(list)
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        known = recognise(path.name)
        if known is None:
            yield Row(path.name, error="unknown file")
        else:
            recordings[known].append(path.name)
    for (name, family), files in recordings.items():
        if family.run is None:
            print(f"left alone: {', '.join(files)}")
        elif f"{name}.{family.parts[0]}" not in files:
            yield Row(name, error=f"{name}.{family.parts[0]} is missing beside {', '.join(files)}")
        else:
            yield from _run(family, Recording(folder, name, device))


def _run(family: Family, recording: Recording) -> Iterator[Row]:
    """All rows of a recording; an error ends them with a failing row, so that the other recordings still run."""
    ran = False
    try:
        with torch.no_grad():
            for row in family.run(recording):
                ran = True
                yield row
    except Exception as error:
        yield Row(recording.name, error=f"{type(error).__name__}: {error}")
    else:
        if not ran:
            yield Row(recording.name, error="holds no case")


def check(folder: Path, device: str = "cpu") -> bool:
    """Runs everything under a folder and prints the rows. True if there was something to run and all of it agreed."""
    print(f"{'case':<52} {'difference':>10} {'tolerance':>10}  ok")
    results = []
    for place in sorted({path.parent for path in folder.rglob("*") if path.is_file()}):
        for row in check_folder(place, device):
            results.append(row.ok)
            print(row, flush=True)
    print(f"{sum(results)} of {len(results)} agree" if results else f"nothing to run in {folder}")
    return bool(results) and all(results)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="jodi_core.conformance", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="recordings, laid out as tests/golden/jodi")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps: where the networks run")
    options = parser.parse_args(arguments)
    torch.backends.cudnn.allow_tf32 = False    # torch's default for convolutions has 10 bits, the recordings 24
    return 0 if check(options.folder, options.device) else 1


if __name__ == "__main__":
    sys.exit(main())

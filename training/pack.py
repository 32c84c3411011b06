"""python -m training pack FOLDER_SET OUT_DIR: a folder of pictures as tar shards with their indices (shard_index.py).

The same folder gives the same bytes. A shard is there as a whole or not at all, and one that is there and still fits
the folder is kept, so whatever was killed goes on where it was.
"""

import argparse
import json
import os
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from .config import SetConfig
from .folders import FolderSet, inside
from .shard_index import PICTURE, Index, make_index

WRITING = ".writing_"


def add_command(commands) -> None:
    command = commands.add_parser("pack", help="write a folder of pictures as tar shards", description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("folder", metavar="FOLDER_SET", help="a folder with metadata.jsonl")
    command.add_argument("target", metavar="OUT_DIR", type=Path,
                         help="the folder for the shards; nothing else is written")
    command.add_argument("--split", default="", help="pack what metadata.SPLIT.jsonl lists")
    command.add_argument("--samples-per-shard", type=int, default=1000)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """1 if samples were left out."""
    return int(pack(options.folder, options.target, options.split, options.samples_per_shard) > 0)


def pack(folder: str, target: Path, split: str = "", per_shard: int = 1000) -> int:
    """Write all shards; how many samples had to be left out because they cannot be read (which is said)."""
    if per_shard < 1:
        raise ValueError(f"{per_shard} samples per shard are too few: use at least 1")
    source = FolderSet(SetConfig(path=folder, split=split))
    count = -(-len(source) // per_shard)
    made_from = f"{source.folder.resolve().name}/{source.metadata.name}, {per_shard} samples per shard"
    target.mkdir(parents=True, exist_ok=True)
    check_target(target, count, made_from)
    left_out = 0
    for number in range(count):
        rows = range(number * per_shard, min((number + 1) * per_shard, len(source)))
        left_out += pack_shard(source, rows, target / shard_name(number), made_from)
    last = f"{{{0:06d}..{count - 1:06d}}}" if count > 1 else f"{0:06d}"
    print(f"{len(source) - left_out} samples in {count} shards, {left_out} left out: "
          f'path = "{target}/shard-{last}.tar"')
    return left_out


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def check_target(target: Path, count: int, made_from: str) -> None:
    """Remove what a killed run left. ValueError if there are shards of something else."""
    for old in target.glob(f"{WRITING}shard-*"):
        old.unlink()
    expected = {shard_name(number) for number in range(count)}
    for shard in sorted(target.glob("*.tar")):
        index = Index.read(Path(f"{shard}.index"))
        if shard.name not in expected or index is None or index.about.get("made_from") != made_from:
            raise ValueError(f"{shard} is no part of {made_from}: pack into an empty folder, or remove it")


def pack_shard(source: FolderSet, rows: range, shard: Path, made_from: str) -> int:
    """How many samples were left out."""
    plan, faults = [], []
    for row in rows:
        try:
            plan.append(planned(source, row))
        except (OSError, ValueError) as error:
            faults.append(str(error))
    if fits(plan, shard):
        print(f"{shard}: kept", flush=True)
    else:
        faults += write_shard(plan, shard, made_from)
        print(f"{shard}: {len(rows) - len(faults)} samples, {shard.stat().st_size >> 20} MB", flush=True)
    for fault in faults:
        print(f"left out: {fault}", flush=True)
    return len(faults)


def planned(source: FolderSet, row: int) -> tuple[str, dict, dict[str, Path]]:
    """(key, metadata, pictures) of a sample. ValueError or OSError, with what is wrong."""
    entry, name = source.entry(row)
    pictures = {field: inside(source.folder, path, f"{name}: {field}") for field, path in entry.items()
                if PICTURE.fullmatch(field) and path}
    if "image" not in pictures:
        raise ValueError(f"{name}: it has no image")
    for field, path in pictures.items():
        if not path.is_file():
            raise FileNotFoundError(f"{name}: {field}: {path} does not exist")
    return (f"{source.starts[row][1]:08d}", {key: value for key, value in entry.items() if not PICTURE.fullmatch(key)},
            pictures)


def fits(plan: list[tuple[str, dict, dict[str, Path]]], shard: Path) -> bool:
    """Whether a shard holds just these samples, as far as names, sizes and times tell."""
    index = Index.read(Path(f"{shard}.index"))
    if not shard.is_file() or index is None or index.about["size"] != shard.stat().st_size \
            or len(index.sizes) != len(plan):
        return False
    written = shard.stat().st_mtime_ns
    for number, (key, metadata, pictures) in enumerate(plan):
        there, found = index.sample(number), {field: path.stat() for field, path in pictures.items()}
        sizes = {field: size for field, (_, size, _) in there["files"].items()}
        if (there["key"], there["metadata"]) != (key, metadata) \
                or {field: stat.st_size for field, stat in found.items()} != sizes \
                or any(stat.st_mtime_ns > written for stat in found.values()):
            return False
    return True


def write_shard(plan: list, shard: Path, made_from: str) -> list[str]:
    """What could not be read. The index comes first, so that a shard never lacks it."""
    faults: list[str] = []
    temporary, index = shard.with_name(WRITING + shard.name), shard.with_name(f"{WRITING}{shard.name}.index")
    with open(temporary, "x+b") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name, content in files_of(plan, faults):
                member = tarfile.TarInfo(name)    # of nobody, at time 0
                member.size = len(content)
                tar.addfile(member, BytesIO(content))
        flush(file)
        file.seek(0)
        content = make_index(file, str(shard), made_from=made_from)
    with open(index, "xb") as file:
        file.write(content)
        flush(file)
    shard.unlink(missing_ok=True)    # never beside the index of another one
    os.replace(index, f"{shard}.index")
    os.replace(temporary, shard)
    return faults


def files_of(plan: list, faults: list[str]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of all files of a shard."""
    for key, metadata, pictures in plan:
        try:
            contents = {field: path.read_bytes() for field, path in pictures.items()}
        except OSError as error:
            faults.append(f"sample {key}: {error}")
            continue
        yield f"{key}.json", json.dumps(metadata).encode()
        for field, content in contents.items():
            yield f"{key}.{field}{pictures[field].suffix.lower()}", content


def flush(file) -> None:
    file.flush()
    os.fsync(file.fileno())

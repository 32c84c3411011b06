"""What lies where in a tar shard, so that every picture can be read by itself.

A shard is an uncompressed tar file in the manner of WebDataset: the files of a sample lie one after the other and share
a KEY, which is the name up to the first dot.

    KEY.json                     the sample's line of metadata (folders.py) without its paths: info, caption
    KEY.image.EXT                the picture
    KEY.annotation_DOMAIN.EXT    its labels, as many as there are: KEY.annotation_depth.jpg

Shards that were packed for Dual Diffusion are read, too: KEY.jpg or KEY.png with a KEY.json that has texts under
`caption` and `org_caption`, and no size.

Other files of a sample are not read. An index is a text file of JSON lines: one about the shard (size, number of
samples, fault, and what else its maker knows), then one per sample: key, metadata, and start, size and sha256 of every
picture.
"""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from .folders import size_of

FORMAT = 1
NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)")
PLAIN = ("jpg", "jpeg", "png")    # names of a picture that has no labels
TEXTS = ("caption", "org_caption")
PICTURE = re.compile(r"image|annotation_[\w-]+")    # fields of the metadata that are paths


@dataclass(frozen=True)
class Index:
    """An index file. Holds where its lines begin, and the sizes of the samples; the rest is read when needed."""

    path: Path
    about: dict
    starts: list[int]
    sizes: list[tuple[int, int]]    # (height, width)

    @classmethod
    def read(cls, path: Path) -> "Index | None":
        """None if there is none, or it is damaged."""
        try:
            with open(path, "rb") as lines:
                about = json.loads(lines.readline())
                starts, sizes, place = [], [], lines.tell()
                for line in lines:
                    info = json.loads(line)["metadata"]["info"]
                    starts.append(place)
                    sizes.append((int(info["height"]), int(info["width"])))
                    place += len(line)
            whole = about["jodi_shard_index"] == FORMAT and about["samples"] == len(starts)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return cls(path, about, starts, sizes) if whole else None

    def sample(self, number: int) -> dict:
        with open(self.path, "rb") as lines:
            lines.seek(self.starts[number])
            return json.loads(lines.readline())


def make_index(shard: BinaryIO, name: str, **about) -> bytes:
    """The content of an index file. Reads the whole shard once. ValueError for a sample that is not as it should be.

    A shard that is cut short or damaged is indexed up to there; `fault` tells.
    """
    fault = ""
    try:
        samples = grouped(shard, name)
    except Damaged as error:
        samples, fault = error.samples, str(error)
    first = {"jodi_shard_index": FORMAT, "size": shard.seek(0, os.SEEK_END), "samples": len(samples), "fault": fault}
    return b"".join(json.dumps(line).encode() + b"\n" for line in (first | about, *samples))


class Damaged(ValueError):
    """A shard cannot be read to its end; `samples` are whole."""

    def __init__(self, message: str, samples: list[dict]):
        super().__init__(message)
        self.samples = samples


def grouped(shard: BinaryIO, name: str) -> list[dict]:
    """Samples of a shard, as lines of the index."""
    found, keys, sample = [], set(), None
    try:
        for key, kind, start, content in files_of(shard):
            if sample is None or key != sample["key"]:
                found += [] if sample is None else [checked(sample, name)]
                if key in keys:
                    raise ValueError(f"{name}: the files of sample {key} do not lie one after the other")
                keys.add(key)
                sample = {"key": key, "metadata": None, "files": {}}
            add_file(sample, kind, start, content, name)
    except tarfile.ReadError as error:
        where = f"in or after sample {sample['key']}" if sample else "at its beginning"
        raise Damaged(f"{name} is damaged or cut short {where} ({error})", found) from None
    return found + ([] if sample is None else [checked(sample, name)])


def files_of(shard: BinaryIO) -> Iterator[tuple[str, str, int, bytes]]:
    """(key, name after the key, start, content) of every file. tarfile.ReadError if the shard breaks off."""
    with tarfile.open(fileobj=shard, mode="r:") as tar:
        for member in tar:
            name = NAME.fullmatch(member.name)
            if not member.isreg() or name is None:
                continue
            shard.seek(member.offset_data)
            content = shard.read(member.size)
            if len(content) < member.size:
                raise tarfile.ReadError(f"{len(content)} of {member.size} bytes of {member.name}")
            yield *name.groups(), member.offset_data, content
        shard.seek(tar.offset)
        if shard.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):    # tarfile takes it for the end all the same
            raise tarfile.ReadError(f"no file and no end mark at byte {tar.offset}")


def add_file(sample: dict, kind: str, start: int, content: bytes, name: str) -> None:
    name, field = f"{name}, sample {sample['key']}", kind.partition(".")[0]
    if kind == "json":
        sample["metadata"] = {key: value for key, value in metadata_of(content, name).items()
                              if not PICTURE.fullmatch(key)}
    elif field in PLAIN or PICTURE.fullmatch(field):
        if field in PLAIN:
            field, sample["info"] = "image", size_of_picture(content, name)
        if field in sample["files"]:
            raise ValueError(f"{name}: it has more than one {field}")
        sample["files"][field] = start, len(content), hashlib.sha256(content).hexdigest()


def metadata_of(content: bytes, name: str) -> dict:
    """With captions by source, and its size if it tells one. ValueError for no object, or a size that cannot be."""
    try:
        metadata = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{name}: its metadata is no JSON ({error})") from None
    if isinstance(metadata, dict) and isinstance(metadata.get("caption"), str):
        return metadata | {"caption": {key: metadata[key] for key in TEXTS if metadata.get(key)}}
    size_of(content, name)
    return metadata


def size_of_picture(content: bytes, name: str) -> dict[str, int]:
    try:
        width, height = Image.open(BytesIO(content)).size
    except OSError as error:
        raise ValueError(f"{name}: its picture cannot be read ({error})") from None
    return {"height": height, "width": width}


def checked(sample: dict, name: str) -> dict:
    if sample["metadata"] is None:
        raise ValueError(f"{name}, sample {sample['key']}: it has no {sample['key']}.json")
    info = sample.pop("info", None) or sample["metadata"].get("info")
    if info is None:
        raise ValueError(f"{name}, sample {sample['key']}: neither a picture under its own name nor info with its size")
    sample["metadata"]["info"] = info
    return sample

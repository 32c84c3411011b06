"""Data sets as tar shards (shard_index.py), on disks or wherever fsspec reads from: pictures are read one by one.

Which sample comes when depends on the index alone, so an order that resumes works here as it does for folders. The
index of a shard is made once, by reading all of it, and lies beside it as NAME.tar.index, or in the cache folder if the
shard is remote or its folder cannot be written; `python -m training pack` writes shards with their indices.
"""

import hashlib
import os
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .config import DataConfig, SetConfig
from .folders import Sample, captions_of, fields_of
from .shard_index import Index, make_index

BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
TRIES = 4        # of what the network may fail at; each waits twice as long as the one before
AT_ONCE = 8      # shards that are looked up or indexed


@dataclass(frozen=True)
class Member:
    """A picture in a shard."""

    shard: str
    key: str
    field: str
    start: int
    size: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.shard}, sample {self.key}, {self.field}"

    def read_bytes(self) -> bytes:
        """OSError if the shard cannot be read, ValueError if the content is not what was indexed."""
        try:
            content = read_range(self.shard, self.start, self.start + self.size)
        except OSError as error:
            raise OSError(f"{self}: {error}") from error
        if len(content) != self.size:
            raise ValueError(f"{self}: {len(content)} bytes in place of {self.size}: the shard was cut short, or its "
                             "server does not know ranges")
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise ValueError(f"{self}: damaged, its content is not what was indexed; if the shard was replaced, remove "
                             "its index")
        return content


class ShardSet:
    """One data set in tar shards."""

    def __init__(self, config: SetConfig, data: DataConfig):
        self.chances, self.cache = config.captions, data.cache
        self.shards = expand(config.path)
        order = random.Random().sample(self.shards, len(self.shards))    # processes share the work of indexing
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = dict(zip(order, pool.map(self.index_of, order)))
        self.indices = [found[shard] for shard in self.shards]
        for index in self.indices:
            if index.about["fault"]:
                if data.on_error == "stop":
                    raise ValueError(index.about["fault"])
                print(f"{index.about['fault']}: only its first {len(index.sizes)} samples are used", flush=True)
        self.places = [(which, row) for which, index in enumerate(self.indices) for row in range(len(index.sizes))]
        self.sizes = [size for index in self.indices for size in index.sizes]

    def __len__(self) -> int:
        return len(self.places)

    def sample(self, index: int, domains: tuple[str, ...]) -> Sample:
        which, row = self.places[index]
        entry, shard = self.indices[which].sample(row), self.shards[which]
        name = f"{shard}, sample {entry['key']}"
        pictures = {domain: Member(shard, entry["key"], field, *entry["files"][field])
                    for domain, field in fields_of(domains).items() if field in entry["files"]}
        return Sample(name, self.sizes[index], pictures, captions_of(entry["metadata"], name), self.chances)

    # ---- indices ----------------------------------------------------------------------------------------------

    def index_of(self, shard: str) -> Index:
        """Found, or made and kept."""
        size, changed = stat(shard)
        places = self.places_of(shard, size, changed)
        for place in places:
            index = Index.read(place)
            if index and index.about["size"] == size and (is_url(shard) or place.stat().st_mtime_ns >= changed):
                return index
        for make in (uploaded_index, indexed) if is_url(shard) else (indexed,):
            content = make(shard)
            index = content and self.keep(places, content)
            if index and index.about["size"] == size:
                return index
        raise OSError(f"{shard}: its size changes while it is read")

    def keep(self, places: list[Path], content: bytes) -> Index | None:
        """Write an index at the first place that can be written."""
        for place in places:
            try:
                write_whole(place, content)
                return Index.read(place)
            except OSError as error:
                refused = error
        raise OSError(f"the index of a shard cannot be written ({refused}): name a data.cache folder") from refused

    def places_of(self, shard: str, size: int, changed) -> list[Path]:
        """Where its index may lie."""
        known = hashlib.sha256(f"{shard}\n{size}\n{changed}".encode()).hexdigest()
        cached = [Path(self.cache) / "shards" / f"{known}.index"] if self.cache else []
        return cached if is_url(shard) else [Path(f"{shard}.index"), *cached]


def expand(pattern: str) -> list[str]:
    """"shard-{000..012}.tar" -> 13 paths. ValueError for an empty range."""
    found = BRACES.search(pattern)
    if found is None:
        return [pattern]
    first, last = int(found[1]), int(found[2])
    if last < first:
        raise ValueError(f"{pattern}: no number lies in {found[0]}")
    return [shard for number in range(first, last + 1) for shard in expand(
        f"{pattern[:found.start()]}{number:0{len(found[1])}d}{pattern[found.end():]}")]


def write_whole(path: Path, content: bytes) -> None:
    """Under another name first, so that it is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".writing_{os.getpid()}_{path.name}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


# ---- near and far -------------------------------------------------------------------------------------------------

def is_url(shard: str) -> bool:
    return "://" in shard


def stat(shard: str) -> tuple[int, int | str]:
    """(size, what changes with its content)."""
    if not is_url(shard):
        found = os.stat(shard)
        return found.st_size, found.st_mtime_ns
    info = far(shard, lambda files, path: files.info(path))
    marks = {name.lower(): str(value) for name, value in info.items()}
    return info["size"], next((marks[name] for name in ("etag", "content-md5", "lastmodified", "last-modified", "mtime",
                                                        "updated", "created") if name in marks), "")


def read_range(shard: str, start: int, stop: int) -> bytes:
    if is_url(shard):
        return far(shard, lambda files, path: files.cat_file(path, start=start, end=stop))
    with open(shard, "rb") as file:
        file.seek(start)
        return file.read(stop - start)


def indexed(shard: str) -> bytes:
    def work(files, path) -> bytes:
        with files.open(path, "rb") as file:
            return make_index(file, shard)
    print(f"indexing {shard}", flush=True)
    if is_url(shard):
        return far(shard, work)
    with open(shard, "rb") as file:
        return make_index(file, shard)


def uploaded_index(shard: str) -> bytes | None:
    """What lies beside a remote shard under the name of its index, if anything."""
    try:
        return far(f"{shard}.index", lambda files, path: files.cat_file(path))
    except OSError:    # whether it is missing or forbidden
        return None


def far(url: str, work):
    """work(file system, path in it) by fsspec; tried again when the network fails, then OSError."""
    from fsspec.core import url_to_fs    # only whoever reads from far needs it

    for attempt in range(TRIES):
        try:
            return work(*url_to_fs(url))
        except (FileNotFoundError, PermissionError, ValueError, ImportError):
            raise
        except Exception as error:    # every protocol has its own kinds
            if attempt == TRIES - 1 or 400 <= getattr(error, "status", 0) < 500:
                raise OSError(f"{url}: {error!r}") from error
            time.sleep(2 ** attempt)

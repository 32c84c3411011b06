"""Encoded pictures and captions on disk, found by what went into them and never by position.

A store is a folder of SQLite files, one per writing process: an entry is there as a whole or not at all, whatever is
killed when, and processes do not wait for one another. Entries carry a checksum.
"""

import hashlib
import os
import shutil
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from .faults import DiskFull

SCHEMA = """
create table if not exists entries (key text primary key, shape text, checksum integer, data blob);
create table if not exists files (path text primary key, size integer, changed integer, sha256 text);
"""


class Store:
    """Tensors by key, in float16. Reads what all processes wrote; writes into the file of its own rank."""

    def __init__(self, folder: Path, rank: int = 0):
        self.folder, self.rank = folder, rank
        self.connections: dict[tuple[int, str], sqlite3.Connection] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def __getstate__(self) -> dict:    # a data loader's worker opens files of its own
        return {"folder": self.folder, "rank": self.rank, "connections": {}}

    def open(self, name: str) -> sqlite3.Connection:
        key = os.getpid(), name
        if key not in self.connections:
            connection = sqlite3.connect(self.folder / name, timeout=60)
            with self.room():
                connection.executescript("pragma journal_mode = wal; pragma synchronous = normal;" + SCHEMA)
            self.connections[key] = connection
        return self.connections[key]

    @property
    def own(self) -> sqlite3.Connection:
        return self.open(f"part_{self.rank:05d}.db")

    def parts(self) -> list[sqlite3.Connection]:
        return [self.open(path.name) for path in sorted(self.folder.glob("part_*.db"))]

    def get(self, key: str) -> Tensor | None:
        """The tensor (float16) of a key; None if there is none, or if what is there is damaged (which is said)."""
        for part in self.parts():
            found = part.execute("select shape, checksum, data from entries where key = ?", (key,)).fetchone()
            if found is None:
                continue
            shape, checksum, data = found
            if zlib.crc32(data) == checksum:
                values = torch.frombuffer(bytearray(data), dtype=torch.float16)
                return values.view([int(side) for side in shape.split("x")])
            print(f"{self.folder}: entry {key} is damaged and is made anew", flush=True)
        return None

    def has(self, key: str) -> bool:
        return any(part.execute("select 1 from entries where key = ?", (key,)).fetchone() for part in self.parts())

    def put(self, values: dict[str, Tensor]) -> None:
        """All of them, or none if this is cut short."""
        rows = []
        for key, value in values.items():
            data = value.detach().half().cpu().contiguous().numpy().tobytes()
            rows.append((key, "x".join(map(str, value.shape)), zlib.crc32(data), data))
        with self.room(sum(len(data) for *_, data in rows)), self.own as own:
            own.executemany("insert or replace into entries values (?, ?, ?, ?)", rows)

    @contextmanager
    def room(self, needed: int = 0) -> Iterator[None]:
        """DiskFull if what is written does not fit. What was there before stays."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if not error.sqlite_errorname.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
                raise
            free = shutil.disk_usage(self.folder).free
            raise DiskFull(f"{self.folder}: {error} while {needed / 1e6:.2f} MB were stored, {free / 1e6:.2f} MB are "
                           "left: make room and start again; what is stored is whole and is not made again") from error

    def digest(self, path: Path) -> str:
        """sha256 of a file's content; remembered while its size and time of change stay."""
        stat = path.stat()
        told = (str(path), stat.st_size, stat.st_mtime_ns)
        for part in self.parts():
            found = part.execute("select sha256 from files where path = ? and size = ? and changed = ?",
                                 told).fetchone()
            if found:
                return found[0]
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        with self.room(), self.own as own:
            own.execute("insert or replace into files values (?, ?, ?, ?)", (*told, sha256))
        return sha256


def key_of(*parts) -> str:
    """A key from everything that shapes an entry."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()

"""Entries: inputs by their keys, wherever they are stored, and those that cannot be used."""

from __future__ import annotations

import hashlib
import os
import stat
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import xxhash

from stae_cli.errors import InputError
from stae_cli.storage.notes import LARGEST_SIDECAR, NOTHING, SIDECARS, Notes, parse_sidecars

PIECE = 1 << 20  # bytes that are hashed at once


@dataclass(frozen=True, slots=True)
class SourceState:
    """What distinguishes one version of a source from the next.

    `size` in bytes; `mtime_ns` of files, 0 for objects of a store; `etag` of objects.
    """

    size: int
    mtime_ns: int = 0
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Entry(ABC):
    """One input: its key, a path with `/` relative to its SOURCE."""

    key: str

    @property
    @abstractmethod
    def place(self) -> str:
        """Its location, for messages."""

    @property
    @abstractmethod
    def root(self) -> str:
        """The location that its key is relative to."""

    @abstractmethod
    def state(self) -> SourceState:
        """Its current state.

        Raises:
            OSError: it no longer exists or cannot be reached.
        """

    @abstractmethod
    def open(self) -> BinaryIO:
        """Its bytes, seekable; the caller closes it.

        Raises:
            InputError: it changed since it was listed.
            OSError: it no longer exists or cannot be read.
        """

    def notes(self) -> Notes:
        """The caption and the label that lie beside it.

        Raises:
            InputError: they are damaged.
            OSError: they cannot be read.
        """
        return NOTHING


@dataclass(frozen=True, slots=True)
class FileEntry(Entry):
    """A local file; its path is text, which takes less memory: a plan holds millions.

    `sidecars` are the suffixes of the files beside it that hold notes, None if that is not known;
    `said` is what the source says of it elsewhere.
    """

    place: str
    sidecars: tuple[str, ...] | None = ()
    said: Notes = NOTHING

    @property
    def path(self) -> Path:
        """Its path."""
        return Path(self.place)

    @property
    def root(self) -> str:
        return root_above(self.place, self.key)

    def state(self) -> SourceState:
        found = os.stat(self.place)  # noqa: PTH116 (a third faster than Path.stat)
        if not stat.S_ISREG(found.st_mode):  # opening a pipe would block
            raise InputError("it is a folder or a special file")
        return SourceState(found.st_size, found.st_mtime_ns)

    def open(self) -> BinaryIO:
        return open(self.place, "rb")  # noqa: PTH123 (a third faster than Path.open)

    def notes(self) -> Notes:
        if self.sidecars == ():
            return self.said
        stem = os.path.splitext(self.place)[0]  # noqa: PTH122 (several times as fast)
        found = {}
        for suffix in SIDECARS if self.sidecars is None else self.sidecars:
            try:
                with open(stem + suffix, "rb") as file:  # noqa: PTH123
                    found[suffix] = file.read(LARGEST_SIDECAR + 1)
            except (FileNotFoundError, IsADirectoryError):
                if self.sidecars is not None:
                    raise
        return parse_sidecars(found).over(self.said)


def root_above(place: str, key: str) -> str:
    """The folder that holds `place` under the key; the one above the file if names differ."""
    above = place[: -len(key)]
    is_below = place[len(above) :].replace(os.sep, "/") == key
    return above or os.curdir if is_below else os.path.dirname(place)  # noqa: PTH120


@lru_cache(maxsize=64)
def root_id(root: str) -> str:
    """Identifies a root: the same for every spelling of its path, and says nothing of the path."""
    real = root if "://" in root else os.path.realpath(root)
    return hashlib.blake2b(real.encode(errors="surrogateescape"), digest_size=8).hexdigest()


def content_hash(file: BinaryIO) -> str:
    """The 128-bit XXH3 of a file's bytes, in hexadecimal; leaves the file at its beginning."""
    state = xxhash.xxh3_128()
    while piece := file.read(PIECE):
        state.update(piece)
    file.seek(0)
    return state.hexdigest()


@dataclass(frozen=True)
class Problem:
    """An input that cannot be used, and why."""

    key: str
    reason: str


class DamagedArchive(Problem):
    """An unreadable tar or Parquet file, or a damaged one, which may hold more than is listed."""

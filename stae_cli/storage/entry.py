"""Entries: inputs by their keys, wherever they lie, and what was found wrong with some."""

from __future__ import annotations

import io
import os
import stat
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from stae_cli.errors import InputError

CHANGED = "changed since it was listed"


@dataclass(frozen=True, slots=True)
class SourceState:
    """What tells one version of a source from the next.

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
        """Where it lies, for messages."""

    @abstractmethod
    def state(self) -> SourceState:
        """Its state now.

        Raises:
            OSError: it is gone or cannot be reached.
        """

    @abstractmethod
    def open(self) -> BinaryIO:
        """Its bytes, seekable; the caller closes it.

        Raises:
            InputError: it is not what was listed.
            OSError: it is gone or cannot be read.
        """


@dataclass(frozen=True, slots=True)
class FileEntry(Entry):
    """A file of this machine; its path as text, since a plan holds millions."""

    place: str

    @property
    def path(self) -> Path:
        """Where it lies."""
        return Path(self.place)

    def state(self) -> SourceState:
        found = os.stat(self.place)  # noqa: PTH116 (a third faster than Path.stat)
        if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
            raise InputError("it is a folder or a special file")
        return SourceState(found.st_size, found.st_mtime_ns)

    def open(self) -> BinaryIO:
        return open(self.place, "rb")  # noqa: PTH123 (a third faster than Path.open)


@dataclass(frozen=True)
class MemberEntry(Entry):
    """A file within a tar of this machine: `size` bytes from `offset` of the tar as `listed`.

    The member's state is its own size with the time of the tar.
    """

    tar: Path
    listed: SourceState
    offset: int
    size: int

    @property
    def place(self) -> str:
        return f"{self.tar}:{self.key}"

    def state(self) -> SourceState:
        return SourceState(self.size, self.listed.mtime_ns)

    def open(self) -> BinaryIO:
        with opened_as_listed(self.tar, self.listed) as file:
            file.seek(self.offset)
            data = file.read(self.size)
            if len(data) < self.size or not is_as_listed(file, self.listed):
                raise InputError(f"`{self.tar}` {CHANGED}")
        return io.BytesIO(data)


def opened_as_listed(path: Path, listed: SourceState) -> BinaryIO:
    """A file, which must still be what was listed: what is known of its inside holds for that.

    Raises:
        InputError: it is another one.
        OSError: it cannot be read.
    """
    file = path.open("rb")
    if not is_as_listed(file, listed):
        file.close()
        raise InputError(f"`{path}` {CHANGED}")
    return file


def is_as_listed(file: BinaryIO, listed: SourceState) -> bool:
    """Whether an open file has the size and time that were listed."""
    found = os.fstat(file.fileno())
    return SourceState(found.st_size, found.st_mtime_ns) == listed


@dataclass(frozen=True)
class Problem:
    """An input that cannot be used, and why."""

    key: str
    reason: str

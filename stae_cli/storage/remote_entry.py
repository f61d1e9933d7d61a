"""Remote entries: objects of stores as inputs, read whole or in parts, and tars fetched whole."""

from __future__ import annotations

import io
import os
import tempfile
import threading
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, cast

from stae_cli.errors import InputError, UsageError
from stae_cli.storage.entry import Entry, Problem, SourceState
from stae_cli.storage.fsspec_store import Store, is_url, state_of, store_at, unreachable
from stae_cli.storage.names import check_key

HEAD = 256 << 10  # bytes asked for at once at an object's beginning, where headers are
PIECE = 16 << 20  # bytes of a tar that are fetched at once


@dataclass(frozen=True)
class RemoteEntry(Entry):
    """An object that is read whole: `name` below the store's root, in the state it was listed in.

    An object that is replaced between listing and reading is recorded with the old state, and
    therefore done again by the next run.
    """

    store: Store
    name: str
    listed: SourceState

    @property
    def place(self) -> str:
        return self.store.place(self.name)

    def state(self) -> SourceState:
        return self.listed

    def open(self) -> BinaryIO:
        data = self.store.read(self.name)
        if len(data) != self.listed.size:
            raise InputError("it changed since it was listed")
        return io.BytesIO(data)

    def fetch(self) -> Fetched:
        """The object in a temporary file of this machine.

        Raises:
            InputError: it is not what was listed.
            OSError: it cannot be read.
        """
        fetched = Fetched(tempfile.TemporaryFile())  # noqa: SIM115
        for begin in range(0, self.listed.size, PIECE):
            fetched.append(self.store.read(self.name, begin, min(begin + PIECE, self.listed.size)))
        if self.store.state(self.name) != self.listed:
            raise InputError("it changed since it was listed")
        return fetched

    def in_parts(self) -> RemoteOutput:
        """The same object, to be read in parts."""
        return RemoteOutput(self.key, self.store, self.name)


@dataclass(frozen=True)
class RemoteOutput(Entry):
    """A latent file on a store, in its state now; read in parts, since shards are large.

    Other errors than its absence end the run: an output that cannot be looked at must not be
    taken for one that is missing.
    """

    store: Store
    name: str

    @property
    def place(self) -> str:
        return self.store.place(self.name)

    def state(self) -> SourceState:
        try:
            return self.store.state(self.name)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise unreachable(self.place, error) from error

    def open(self) -> BinaryIO:
        return cast(BinaryIO, _Parts(self, self.state().size))


class _Parts(io.RawIOBase):
    """An object of a known size as a file; each read beyond its head is one request."""

    def __init__(self, entry: RemoteOutput, size: int) -> None:
        self._entry, self._size, self._at = entry, size, 0
        self._head = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        begin = self._at
        end = self._size if size < 0 else min(begin + size, self._size)
        if begin >= end:
            return b""
        if end > HEAD:
            data = self._part(begin, end)
        else:
            self._head = self._head or self._part(0, min(HEAD, self._size))
            data = self._head[begin:end]
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _part(self, begin: int, end: int) -> bytes:
        entry = self._entry
        try:
            return entry.store.read(entry.name, begin, end)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise unreachable(entry.place, error) from error


def on_this_machine(entry: Entry) -> Entry:
    """The same input, for one who reads all of it in pieces: an object is fetched whole.

    Raises:
        InputError: it is not what was listed.
        OSError: it cannot be read.
    """
    return (
        FetchedObject(entry.key, entry, entry.fetch()) if isinstance(entry, RemoteEntry) else entry
    )


@dataclass(frozen=True)
class FetchedObject(Entry):
    """An object that was fetched, in the state in which it was listed."""

    remote: RemoteEntry
    fetched: Fetched

    @property
    def place(self) -> str:
        return self.remote.place

    def state(self) -> SourceState:
        return self.remote.listed

    def open(self) -> BinaryIO:
        return self.fetched.reopened()


class Fetched:
    """A temporary file that several threads read from; gone with the last who knows it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._lock = file, threading.Lock()
        # `__del__` would come too late for one in a cycle, whose parts are finalized in any order.
        weakref.finalize(self, file.close)

    def read(self, begin: int, size: int) -> bytes:
        """Bytes of the file; fewer than `size` at its end."""
        with self._lock:
            self._file.seek(begin)
            return self._file.read(size)

    def append(self, data: bytes) -> None:
        """Adds bytes at its end."""
        self._file.write(data)

    def reopened(self) -> BinaryIO:
        """The file once more, at its beginning, for one thread at a time."""
        self._file.flush()
        again = os.fdopen(os.dup(self._file.fileno()), "rb")
        again.seek(0)
        return again

    def whole(self) -> AbstractContextManager[IO[bytes]]:
        """The file itself, for one who reads it before anyone else does."""
        self._file.seek(0)
        return nullcontext(self._file)


@dataclass(frozen=True)
class FetchedMember(Entry):
    """A file within a tar that was fetched; its state is its size with the tag of the tar."""

    tar: RemoteEntry
    fetched: Fetched
    offset: int
    size: int

    @property
    def place(self) -> str:
        return f"{self.tar.place}:{self.key}"

    def state(self) -> SourceState:
        return SourceState(self.size, etag=self.tar.listed.etag)

    def open(self) -> BinaryIO:
        data = self.fetched.read(self.offset, self.size)
        if len(data) < self.size:
            raise InputError(f"`{self.tar.place}` is truncated")
        return io.BytesIO(data)


def list_objects(
    url: str, dest: Path | str | None, *, suffixes: Collection[str], passes: Callable[[str], bool]
) -> Iterator[RemoteEntry | Problem | None]:
    """What lies below a URL, in name order; None for each object that is passed over.

    A URL of one object gives that one, whatever its suffix.

    Args:
        url: an object, or what the names of objects begin with, as a folder.
        dest: where results will go, if anywhere; it must not lie inside.
        suffixes: lowercase suffixes, with the dot, to take from folders.
        passes: whether objects with a part of this name are left out.

    Raises:
        UsageError: nothing is there, or DEST lies inside.
        StaeError: the store cannot be reached.
    """
    store = store_at(url)
    try:
        if store.kind() == "file":
            folder, _, name = store.root.rpartition("/")
            above = Store(store.url.rpartition("/")[0], store.fs, folder)
            yield RemoteEntry(name, above, name, above.state(name))
            return
        _refuse_inside(store, dest)
        for name, info in store.objects():
            if not any(map(passes, _parts(name))):
                yield _entry(store, name, info, suffixes)
    except FileNotFoundError as error:
        raise UsageError(f"nothing is there: `{url}`", "check the URL") from error
    except OSError as error:
        raise unreachable(url, error) from error


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".", "..")]


def _entry(
    store: Store, name: str, info: dict[str, Any], suffixes: Collection[str]
) -> RemoteEntry | Problem | None:
    if PurePosixPath(name).suffix.lower() not in suffixes:
        return None
    try:
        check_key(name)
        return RemoteEntry(name, store, name, state_of(info))
    except InputError as error:
        return Problem(name, error.message)


def _refuse_inside(store: Store, dest: Path | str | None) -> None:
    if not isinstance(dest, str) or not is_url(dest):
        return
    other = store_at(dest)
    if type(other.fs) is type(store.fs) and f"{other.root}/".startswith(f"{store.root}/"):
        raise UsageError(
            f"DEST `{dest}` lies inside SOURCE `{store.url}`", "choose a DEST outside of it"
        )

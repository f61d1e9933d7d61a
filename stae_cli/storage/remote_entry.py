"""Remote entries: objects of stores as inputs, listed, read whole or in parts, or fetched whole."""

from __future__ import annotations

import io
import logging
import tempfile
import threading
import weakref
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from stae_cli.errors import InputError, UsageError
from stae_cli.storage.entry import Entry, Problem, SourceState
from stae_cli.storage.fsspec_store import (
    Store,
    absent,
    is_url,
    reaching,
    state_of,
    store_at,
    unreachable,
)
from stae_cli.storage.names import check_key, suffix_of
from stae_cli.storage.noted import Beside, Table, is_table
from stae_cli.storage.notes import LARGEST_SIDECAR, NOTHING, Notes, parse_sidecars, stem_of

_log = logging.getLogger(__name__)

HEAD = 256 << 10  # bytes of an object's beginning, where headers are, that are kept once read
NO_SUFFIX = "no suffix"  # what a file without one counts as
PIECE = 16 << 20  # bytes of a tar fetched in one request


@dataclass(frozen=True, slots=True)
class RemoteEntry(Entry):
    """An object that is read whole, in the state that was listed; its key is its name in the store.

    If an object is replaced between listing and reading, the old state is recorded with it, so the
    next run encodes it again.
    """

    store: Store
    listed: SourceState
    sidecars: tuple[str, ...] = ()  # as of `FileEntry`
    said: Notes = NOTHING

    @property
    def place(self) -> str:
        return self.store.place(self.key)

    @property
    def root(self) -> str:
        return self.store.url

    def state(self) -> SourceState:
        return self.listed

    def notes(self) -> Notes:
        stem = stem_of(self.key)
        found = {s: self.store.read(stem + s, 0, LARGEST_SIDECAR + 1) for s in self.sidecars}
        return parse_sidecars(found).over(self.said)

    def open(self) -> BinaryIO:
        data = self.store.read(self.key)
        if len(data) != self.listed.size:
            raise InputError("it changed since it was listed")
        return io.BytesIO(data)

    def fetch(self) -> Fetched:
        """Downloads the object to a local temporary file.

        Raises:
            InputError: it changed since it was listed.
            OSError: it cannot be read.
        """
        _log.debug("fetching `%s`, %d bytes", self.place, self.listed.size)
        fetched = Fetched(tempfile.TemporaryFile())  # noqa: SIM115
        for begin in range(0, self.listed.size, PIECE):
            fetched.append(self.store.read(self.key, begin, min(begin + PIECE, self.listed.size)))
        if self.store.state(self.key) != self.listed:
            raise InputError("it changed since it was listed")
        return fetched

    def in_parts(self) -> RemoteOutput:
        """The same object, read in parts."""
        return RemoteOutput(self.key, self.store)


@dataclass(frozen=True, slots=True)
class RemoteOutput(Entry):
    """A latent file on a store, in its current state; read in parts, since shards are large.

    Any error except that it is absent ends the run: an output that cannot be checked must not count
    as missing.
    """

    store: Store

    @property
    def place(self) -> str:
        return self.store.place(self.key)

    @property
    def root(self) -> str:
        return self.store.url

    def state(self) -> SourceState:
        with reaching(self.place, ignore=FileNotFoundError):
            return self.store.state(self.key)

    def open(self) -> BinaryIO:
        return cast(BinaryIO, _object_file()(self, self.state().size))

    def read(self, begin: int, end: int) -> bytes:
        """The bytes from `begin` up to `end`, in one request."""
        with reaching(self.place, ignore=FileNotFoundError):
            return self.store.read(self.key, begin, end)


@cache
def _object_file() -> Any:
    """Fsspec's buffered file over our requests; defined on first use, since fsspec is optional.

    The file that a store itself opens would not do: it looks up the size again, raises errors of
    its package, and `memory://` hands out the stored object itself.
    """
    from fsspec.spec import AbstractBufferedFile

    class ObjectFile(AbstractBufferedFile):  # type: ignore[misc]
        """An object of a known size; each read beyond its head is one request."""

        def __init__(self, entry: RemoteOutput, size: int) -> None:
            self.entry = entry
            path = entry.store.path(entry.key)
            super().__init__(entry.store.fs, path, block_size=HEAD, cache_type="first", size=size)

        def _fetch_range(self, begin: int, end: int) -> bytes:
            # At the end of the object fsspec asks for an empty range, which stores refuse.
            return self.entry.read(begin, end) if begin < end else b""

    return ObjectFile


def on_this_machine(entry: Entry) -> Entry:
    """The same input as a local file, for callers that read all of it in pieces.

    Raises:
        InputError: it changed since it was listed.
        OSError: it cannot be read.
    """
    if isinstance(entry, RemoteEntry):
        return FetchedObject(entry.key, entry, entry.fetch())
    return entry


@dataclass(frozen=True)
class FetchedObject(Entry):
    """An object in a local temporary file, with the state that was listed."""

    remote: RemoteEntry
    fetched: Fetched

    @property
    def place(self) -> str:
        return self.remote.place

    @property
    def root(self) -> str:
        return self.remote.root

    def state(self) -> SourceState:
        return self.remote.listed

    def open(self) -> BinaryIO:
        return self.fetched.open()


class Fetched:
    """A temporary file that several threads read; deleted with the last reference to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._lock = file, threading.Lock()
        self.size = 0
        # `__del__` would run too late in a reference cycle, whose parts are finalized in any order.
        weakref.finalize(self, file.close)

    def append(self, data: bytes) -> None:
        """Appends bytes; only before the first read."""
        self.size += self._file.write(data)

    def read(self, begin: int, size: int) -> bytes:
        """`size` bytes from `begin`; fewer at the end of the file."""
        with self._lock:
            self._file.seek(begin)
            return self._file.read(size)

    def open(self) -> BinaryIO:
        """The whole file, with a position of its own."""
        return cast(BinaryIO, io.BufferedReader(_FetchedFile(self)))


class _FetchedFile(io.RawIOBase):
    """A reader of a fetched file: another descriptor would share its position with all others."""

    def __init__(self, fetched: Fetched) -> None:
        self._fetched, self._at = fetched, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        starts = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._fetched.size}
        self._at = starts[whence] + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._fetched.read(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def list_objects(
    url: str,
    dest: Path | str | None,
    *,
    suffixes: Collection[str],
    is_skipped: Callable[[str], bool],
    notes: bool = False,
) -> Iterator[RemoteEntry | Table | Problem | str]:
    """The inputs below a URL, in name order; the suffix of each object that is passed over.

    The URL of an object gives that object, whatever its suffix.

    Args:
        url: an object, or a prefix that is treated as a folder.
        dest: where results will go, if anywhere; it must not be inside `url`.
        suffixes: lowercase suffixes, with the dot, to take from folders.
        is_skipped: whether to skip objects that have a part of this name in their path.
        notes: whether to find what is said of pictures, too.

    Raises:
        UsageError: nothing is there, or DEST is inside.
        StaeError: the store cannot be reached.
    """
    store = store_at(url)
    try:
        if store.kind() == "file":
            folder, _, name = store.root.rpartition("/")
            above = Store(store.url.rpartition("/")[0], store.fs, folder)
            try:
                yield RemoteEntry(name, above, above.state(name))
            except InputError as error:
                yield Problem(url, error.message)
            return
        _refuse_inside(store, dest)
        objects = store.objects()
        beside = Beside.of((name for name, _ in objects), suffixes) if notes else Beside()
        for name, info in objects:
            parts = (part for part in name.split("/") if part not in ("", ".", ".."))
            if any(map(is_skipped, parts)):
                _log.debug("skipped `%s`: hidden, or written by stae", store.place(name))
            elif notes and is_table(name):
                yield Table(RemoteEntry(name, store, state_of(info)), name)
            elif not beside.has(name):
                yield _entry(store, name, info, suffixes, beside)
    except FileNotFoundError as error:
        raise absent(url) from error
    except OSError as error:
        raise unreachable(url, error) from error


def _entry(
    store: Store, name: str, info: dict[str, Any], suffixes: Collection[str], beside: Beside
) -> RemoteEntry | Problem | str:
    if (suffix := suffix_of(name)) not in suffixes:
        _log.debug("skipped `%s`: its suffix", store.place(name))
        return suffix or NO_SUFFIX
    try:
        check_key(name)
        return RemoteEntry(name, store, state_of(info), beside.sidecars(name))
    except InputError as error:
        return Problem(name, error.message)


def _refuse_inside(store: Store, dest: Path | str | None) -> None:
    if not isinstance(dest, str) or not is_url(dest):
        return
    other = store_at(dest)
    if type(other.fs) is type(store.fs) and f"{other.root}/".startswith(f"{store.root}/"):
        raise UsageError(
            f"DEST `{dest}` is inside SOURCE `{store.url}`", "choose a DEST outside of it"
        )

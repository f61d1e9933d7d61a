"""Tars in WebDataset layout: their image members as entries, read in place."""

from __future__ import annotations

import io
import logging
import os
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import BinaryIO

from stae_cli.errors import InputError
from stae_cli.storage.entry import Entry, FileEntry, Problem, SourceState
from stae_cli.storage.names import problem_of
from stae_cli.storage.remote_entry import Fetched, RemoteEntry

_log = logging.getLogger(__name__)

SUFFIX = ".tar"
CHANGED = "changed since it was listed"
MEMBER_LIMIT = 4 << 30  # bytes: more than any image that is read takes
PIECE = 1 << 20  # bytes that are checked at once
DAMAGE = (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError, RecursionError)


class DamagedTar(Problem):
    """A damaged tar, which may have members that are not listed."""


@dataclass(frozen=True)
class Tar:
    """A tar of images; their keys begin with `prefix`, its own key without the suffix."""

    prefix: str
    entry: FileEntry | RemoteEntry

    @property
    def etag(self) -> str:
        """What distinguishes this tar from later ones of its name; empty for local tars."""
        return self.entry.listed.etag if isinstance(self.entry, RemoteEntry) else ""


def tar_of(entry: FileEntry | RemoteEntry) -> Tar:
    """An entry as a tar; one named `...tar` keeps its suffix."""
    key = entry.key
    prefix = key[: -len(SUFFIX)] if key.lower().endswith(SUFFIX) else key
    return Tar(key if prefix.rpartition("/")[2] in ("", ".", "..") else prefix, entry)


@dataclass(frozen=True, slots=True)
class Member(Entry):
    """A file in a tar: `size` bytes from `offset`; its state is that of the tar, with this size."""

    archive: Archive
    offset: int
    size: int

    @property
    def place(self) -> str:
        return f"{self.archive.place}:{self.key}"

    @property
    def root(self) -> str:
        return self.archive.root

    def state(self) -> SourceState:
        return replace(self.archive.listed, size=self.size)

    def open(self) -> BinaryIO:
        return io.BytesIO(self.archive.read(self.offset, self.size))


@dataclass(frozen=True)
class LocalArchive:
    """A local tar, which must not change, since offsets in it are known."""

    place: str
    root: str
    listed: SourceState

    def stream(self) -> BinaryIO:
        """The tar from its beginning.

        Raises:
            InputError: it changed since it was listed.
            OSError: it cannot be read.
        """
        file = open(self.place, "rb")  # noqa: PTH123, SIM115
        if not _is_as_listed(file, self.listed):
            file.close()
            raise InputError(f"`{self.place}` {CHANGED}")
        return file

    def read(self, begin: int, size: int) -> bytes:
        """Some bytes of the tar; raises what `stream` raises."""
        with self.stream() as file:
            file.seek(begin)
            data = file.read(size)
            if len(data) < size or not _is_as_listed(file, self.listed):
                raise InputError(f"`{self.place}` {CHANGED}")
        return data


def _is_as_listed(file: BinaryIO, listed: SourceState) -> bool:
    found = os.fstat(file.fileno())
    return SourceState(found.st_size, found.st_mtime_ns) == listed


@dataclass(frozen=True)
class FetchedArchive:
    """A tar from a store in a temporary file, kept while one of its members is referenced."""

    place: str
    root: str
    listed: SourceState
    fetched: Fetched

    def stream(self) -> BinaryIO:
        """The tar from its beginning."""
        return self.fetched.open()

    def read(self, begin: int, size: int) -> bytes:
        """Some bytes of the tar."""
        data = self.fetched.read(begin, size)
        if len(data) < size:
            raise InputError(f"`{self.place}` is truncated")
        return data


Archive = LocalArchive | FetchedArchive


def members(tar: Tar, *, suffixes: Collection[str]) -> Iterator[Entry | Problem]:
    """The images of a tar, in its order; hidden files and other suffixes are skipped.

    Only headers are read, not the members' data. Names that lead elsewhere, and members that are
    not regular files, are problems; so is a tar without a proper end, since members may be missing.

    Raises:
        InputError: it changed since it was listed.
        OSError: the file cannot be read.
    """
    entry = tar.entry
    archive: Archive
    if isinstance(entry, RemoteEntry):
        archive = FetchedArchive(entry.place, entry.root, entry.listed, entry.fetch())
    else:
        archive = LocalArchive(entry.place, entry.root, entry.state())
    try:
        with archive.stream() as stream:
            length = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            file = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115 (closes nothing of ours)
            for info in file:
                # Some versions of tarfile go back at negative sizes, and never end.
                if info.size < 0 or not info.offset < file.offset <= length:
                    raise tarfile.ReadError(f"`{info.name}` reaches beyond its end")
                found = _member(tar, archive, info, suffixes)
                if found is not None:
                    yield found
                file.members.clear()  # type: ignore[attr-defined]  # else they pile up
            _check_end(file)
    except DAMAGE as error:
        reason = str(error) or type(error).__name__
        yield DamagedTar(tar.prefix + SUFFIX, f"damaged or truncated tar: {reason}")


def _check_end(file: tarfile.TarFile) -> None:
    """Checks that only zeros follow the last member: tarfile takes any damage for the end.

    Raises:
        ReadError: something else does.
    """
    assert file.fileobj is not None
    file.fileobj.seek(file.offset)
    rest = file.fileobj.read(tarfile.BLOCKSIZE)
    ended = len(rest) == tarfile.BLOCKSIZE
    while ended and rest:
        ended = rest.count(0) == len(rest)
        rest = file.fileobj.read(PIECE)
    if not ended:
        raise tarfile.ReadError("it does not end as tars do, so members may be missing")


def _member(
    tar: Tar, archive: Archive, info: tarfile.TarInfo, suffixes: Collection[str]
) -> Entry | Problem | None:
    name = info.name.removeprefix("./")
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") and part != ".." for part in path.parts)
    if info.isdir() or hidden or path.suffix.lower() not in suffixes:
        reason = "a folder" if info.isdir() else "hidden" if hidden else "its suffix"
        _log.debug("skipped `%s:%s`: %s", archive.place, info.name, reason)
        return None
    key = f"{tar.prefix}/{name}"
    if unusable := problem_of(name):
        return Problem(key, unusable)
    if not info.isreg() or info.issparse():
        return Problem(key, "a link or special file in a tar")
    if info.size > MEMBER_LIMIT:
        return Problem(key, f"{info.size} bytes, too large for an image")
    return Member(key, archive, info.offset_data, info.size)

"""Tars in WebDataset layout: their image members as entries, read in place."""

from __future__ import annotations

import logging
import os
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from stae_cli.errors import InputError
from stae_cli.storage.entry import (
    Entry,
    FileEntry,
    MemberEntry,
    Problem,
    SourceState,
    opened_as_listed,
)
from stae_cli.storage.names import check_key
from stae_cli.storage.remote_entry import Fetched, FetchedMember, RemoteEntry

_log = logging.getLogger(__name__)

SUFFIX = ".tar"
MEMBER_LIMIT = 4 << 30  # bytes: more than any image that is read takes
PIECE = 1 << 20  # bytes that are checked at once
DAMAGE = (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError, RecursionError)


class DamagedTar(Problem):
    """A tar of which members may be missing that nothing lists."""


@dataclass(frozen=True)
class Tar(ABC):
    """A tar of images; their keys begin with `prefix`, its own key without the suffix."""

    prefix: str

    @property
    @abstractmethod
    def etag(self) -> str:
        """What distinguishes this tar from later ones of its name; empty if only reading it can."""

    @property
    @abstractmethod
    def place(self) -> str:
        """Its location, for messages."""

    @abstractmethod
    def archive(self) -> Archive:
        """Its bytes, locally.

        Raises:
            InputError: it changed since it was listed.
            OSError: it cannot be read.
        """


class Archive(ABC):
    """The bytes of a tar, kept while it or one of its members is referenced."""

    @abstractmethod
    def stream(self) -> AbstractContextManager[IO[bytes]]:
        """The tar as a file, at its beginning."""

    @abstractmethod
    def member(self, key: str, offset: int, size: int) -> Entry:
        """The member whose data are there."""


@dataclass(frozen=True)
class FileTar(Tar):
    """A local tar."""

    path: Path

    @property
    def etag(self) -> str:
        return ""

    @property
    def place(self) -> str:
        return str(self.path)

    def archive(self) -> Archive:
        return _LocalTar(self.path, FileEntry(self.prefix, str(self.path)).state())


@dataclass(frozen=True)
class _LocalTar(Archive):
    path: Path
    listed: SourceState

    def stream(self) -> AbstractContextManager[IO[bytes]]:
        return opened_as_listed(self.path, self.listed)

    def member(self, key: str, offset: int, size: int) -> Entry:
        return MemberEntry(key, self.path, self.listed, offset, size)


@dataclass(frozen=True)
class RemoteTar(Tar):
    """A tar on a store, fetched to a temporary file when it is needed."""

    entry: RemoteEntry

    @property
    def etag(self) -> str:
        return self.entry.listed.etag

    @property
    def place(self) -> str:
        return self.entry.place

    def archive(self) -> Archive:
        return _FetchedTar(self.entry, self.entry.fetch())


@dataclass(frozen=True)
class _FetchedTar(Archive):
    entry: RemoteEntry
    fetched: Fetched

    def stream(self) -> AbstractContextManager[IO[bytes]]:
        return self.fetched.whole()

    def member(self, key: str, offset: int, size: int) -> Entry:
        return FetchedMember(key, self.entry, self.fetched, offset, size)


def tar_of(entry: FileEntry | RemoteEntry) -> Tar:
    """An entry as a tar; one named `...tar` keeps its suffix."""
    key = entry.key
    prefix = key[: -len(SUFFIX)] if key.lower().endswith(SUFFIX) else key
    if prefix.rpartition("/")[2] in ("", ".", ".."):
        prefix = key
    return FileTar(prefix, entry.path) if isinstance(entry, FileEntry) else RemoteTar(prefix, entry)


def members(tar: Tar, *, suffixes: Collection[str]) -> Iterator[Entry | Problem]:
    """The images of a tar, in its order; hidden files and other suffixes are skipped.

    Only headers are read, not the members' data. Names that lead elsewhere, and members that are
    not regular files, are problems; so is a tar without a proper end, since members may be missing.

    Raises:
        InputError: it changed since it was listed.
        OSError: the file cannot be read.
    """
    archive = tar.archive()
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
        _log.debug("skipped `%s:%s`: %s", tar.place, info.name, reason)
        return None
    key = f"{tar.prefix}/{name}"
    try:
        check_key(name)
    except InputError as error:
        return Problem(key, error.message)
    if not info.isreg() or info.issparse():
        return Problem(key, "a link or special file in a tar")
    if info.size > MEMBER_LIMIT:
        return Problem(key, f"{info.size} bytes, too large for an image")
    return archive.member(key, info.offset_data, info.size)

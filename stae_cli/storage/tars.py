"""Tars in WebDataset layout: their image members as entries, read in place."""

from __future__ import annotations

import io
import logging
import os
import tarfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import BinaryIO

from stae_cli.errors import InputError
from stae_cli.signatures import LONGEST, kind_of
from stae_cli.storage import packed
from stae_cli.storage.entry import DamagedArchive, Entry, FileEntry, Problem, SourceState
from stae_cli.storage.names import problem_of, suffix_of, summary_of
from stae_cli.storage.notes import LARGEST_SIDECAR, SIDECARS, Notes, parse_sidecars, stem_of
from stae_cli.storage.packed import compression_of, unpacked
from stae_cli.storage.remote_entry import Fetched, RemoteEntry

_log = logging.getLogger(__name__)

SUFFIX = ".tar"
SUFFIXES = (SUFFIX, *packed.SUFFIXES)
CHANGED = "changed since it was listed"
MEMBER_LIMIT = 4 << 30  # bytes: more than any image that is read takes
PIECE = 1 << 20  # bytes that are checked at once
PADDING = (
    1 << 20
)  # bytes of zeros at a tar's end; GNU tar pads to 10,240, tapes to a few hundred KiB
DAMAGE = (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError, RecursionError)


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
    suffix = next((each for each in SUFFIXES if key.lower().endswith(each)), "")
    prefix = key.removesuffix(key[len(key) - len(suffix) :])
    return Tar(key if prefix.rpartition("/")[2] in ("", ".", "..") else prefix, entry)


@dataclass(frozen=True, slots=True)
class Member(Entry):
    """A file in a tar: `size` bytes from `offset`; its state is that of the tar, with this size."""

    archive: Archive
    offset: int
    size: int
    sidecars: tuple[tuple[str, int, int], ...] = ()  # suffix, offset and size of each

    def notes(self) -> Notes:
        read = self.archive.read
        sizes = ((suffix, at, min(size, LARGEST_SIDECAR + 1)) for suffix, at, size in self.sidecars)
        return parse_sidecars({suffix: read(at, size) for suffix, at, size in sizes})

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
    """A tar in a temporary file, kept while one of its members is referenced.

    It is from a store, or was compressed.
    """

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
Sidecars = defaultdict[str, dict[str, tuple[str, int, int]]]  # by the stem of a key, by suffix


def members(tar: Tar, *, suffixes: Collection[str]) -> Iterator[Entry | Problem]:
    """The images of a tar, in its order; hidden files and other suffixes are skipped.

    Only headers are read, not the members' data. A member that is in the tar twice counts as it is
    there last, as when the tar is extracted; its place is that of the first, so that appending to
    a tar moves no other member. Names that lead elsewhere, and members that are not regular files,
    are problems; so is a tar that cannot be read, or not to a proper end, since members may be
    missing.
    """
    latest: dict[str, Entry | Problem] = {}
    others: Counter[str] = Counter()
    beside: Sidecars = defaultdict(dict)
    damage = None
    try:
        archive = _archive(tar.entry)
        for key, found in _listed(tar, archive, suffixes, latest, others, beside):
            if key in latest and found != latest[key]:
                _log.info("`%s:%s` is in its tar again; the last one counts", archive.place, key)
            latest[key] = found
    except DAMAGE as error:
        damage = f"damaged or truncated tar: {str(error) or type(error).__name__}"
    except InputError as error:
        latest, damage = {}, error.message
    except OSError as error:
        latest, damage = {}, f"cannot read it: {error.strerror or error}"
    if not latest and damage is None:
        held = f": it holds {summary_of(others)}" if others else ""
        damage = f"a tar without pictures{held}"
    for found in latest.values():
        if isinstance(found, Member) and (noted := beside.get(stem_of(found.key))):
            found = replace(found, sidecars=tuple(noted.values()))
        yield found
    if damage is not None:
        yield DamagedArchive(tar.entry.key, damage)


def _archive(entry: FileEntry | RemoteEntry) -> Archive:
    archive: Archive
    if isinstance(entry, RemoteEntry):
        archive = FetchedArchive(entry.place, entry.root, entry.listed, entry.fetch())
    else:
        archive = LocalArchive(entry.place, entry.root, entry.state())
    with archive.stream() as stream:
        compression = compression_of(stream)
        if compression is None:
            return archive
        _log.debug("unpacking `%s`, %d bytes of %s", entry.place, archive.listed.size, compression)
        contents = unpacked(stream, compression, size=archive.listed.size)
    archive.stream().close()  # it has not changed meanwhile
    return FetchedArchive(entry.place, entry.root, archive.listed, contents)


def _listed(
    tar: Tar,
    archive: Archive,
    suffixes: Collection[str],
    latest: Mapping[str, Entry | Problem],
    others: Counter[str],
    beside: Sidecars,
) -> Iterator[tuple[str, Entry | Problem]]:
    """Every image of an archive by its key; `latest` are those so far, `others` counts the rest.

    What may be notes of a picture is added to `beside`: it may come before the picture or behind.
    """
    with archive.stream() as stream:
        length = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        try:
            file = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115 (closes nothing of ours)
        except tarfile.ReadError:
            stream.seek(0)
            if kind := kind_of(stream.read(LONGEST)):
                raise InputError(f"not a tar; it begins like {kind}") from None
            raise
        for info in file:
            # Some versions of tarfile go back at negative sizes, and never end.
            if info.size < 0 or not info.offset < file.offset <= length:
                raise tarfile.ReadError(f"`{info.name}` reaches beyond its end")
            if _is_image(archive, info, suffixes):
                key = f"{tar.prefix}/{info.name.removeprefix('./')}"
                target = latest.get(f"{tar.prefix}/{info.linkname.removeprefix('./')}")
                yield key, _member(key, archive, info, target)
            elif not info.isdir():
                if info.isreg() and info.name.endswith(SIDECARS):
                    stem, suffix = (
                        stem_of(f"{tar.prefix}/{info.name.removeprefix('./')}"),
                        suffix_of(info.name),
                    )
                    beside[stem][suffix] = suffix, info.offset_data, info.size
                others[PurePosixPath(info.name).suffix.lower()] += 1
            file.members.clear()  # type: ignore[attr-defined]  # else they pile up
        _check_end(file)


def _check_end(file: tarfile.TarFile) -> None:
    """Checks that only zeros follow the last member: tarfile takes any damage for the end.

    Raises:
        ReadError: something else does, or far more zeros than any program pads a tar with.
    """
    assert file.fileobj is not None
    file.fileobj.seek(file.offset)
    rest = file.fileobj.read(tarfile.BLOCKSIZE)
    ended, zeros = len(rest) == tarfile.BLOCKSIZE, 0
    while ended and rest:
        ended, zeros = rest.count(0) == len(rest), zeros + len(rest)
        rest = file.fileobj.read(PIECE)
    if not ended:
        raise tarfile.ReadError("it does not end as tars do, so members may be missing")
    if zeros > PADDING:
        raise tarfile.ReadError(
            f"{zeros} bytes of zeros follow its last member, as in an unfinished download"
        )


def _is_image(archive: Archive, info: tarfile.TarInfo, suffixes: Collection[str]) -> bool:
    path = PurePosixPath(info.name)
    hidden = any(part.startswith(".") and part != ".." for part in path.parts)
    if info.isdir() or hidden or path.suffix.lower() not in suffixes:
        reason = "a folder" if info.isdir() else "hidden" if hidden else "its suffix"
        _log.debug("skipped `%s:%s`: %s", archive.place, info.name, reason)
        return False
    return True


def _member(
    key: str, archive: Archive, info: tarfile.TarInfo, target: Entry | Problem | None
) -> Entry | Problem:
    """A member, or why it cannot be used; `target` is the earlier member that it may link to."""
    if unusable := problem_of(info.name.removeprefix("./")):
        return Problem(key, unusable)
    if info.islnk() and isinstance(target, Member):  # the same file under another name
        return replace(target, key=key)
    if not info.isreg() or info.issparse():
        return Problem(key, "a link or special file in a tar")
    if info.size > MEMBER_LIMIT:
        return Problem(key, f"{info.size} bytes, too large for an image")
    return Member(key, archive, info.offset_data, info.size)

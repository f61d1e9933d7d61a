"""Tars in WebDataset layout: their image members as entries, read where they lie."""

from __future__ import annotations

import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stae_cli.errors import InputError
from stae_cli.files.entries import Entry, MemberEntry, Problem
from stae_cli.files.keys import check_key

SUFFIX = ".tar"
MEMBER_LIMIT = 4 << 30  # bytes: more than any image that is read takes
DAMAGE = (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError, RecursionError)


@dataclass(frozen=True)
class Tar:
    """A tar of images; their keys begin with `prefix`, its own key without the suffix."""

    prefix: str
    path: Path
    etag: str = ""


def tar_at(key: str, path: Path) -> Tar:
    """The tar that a file with this key is; one called `...tar` keeps its suffix."""
    stem = key[: -len(SUFFIX)] if key.lower().endswith(SUFFIX) else key
    return Tar(key if stem.rpartition("/")[2] in ("", ".", "..") else stem, path)


def members(tar: Tar, *, suffixes: Collection[str]) -> Iterator[Entry | Problem]:
    """The images of a tar, in its order; hidden files and those with other suffixes are left out.

    Only headers are read: the members' data is passed over. Names that lead elsewhere, and
    members that are no plain files, are problems; so is a tar that does not end as tars do, since
    members may be missing.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        with tarfile.open(tar.path, "r:") as file:
            length = tar.path.stat().st_size
            for info in file:
                # Some versions of tarfile go back at negative sizes, and on for ever.
                if info.size < 0 or not info.offset < file.offset <= length:
                    raise tarfile.ReadError(f"`{info.name}` reaches beyond its end")
                found = _member(tar, info, suffixes)
                if found is not None:
                    yield found
                file.members.clear()  # type: ignore[attr-defined]  # else they pile up
            _check_end(file)
    except DAMAGE as error:
        reason = str(error) or type(error).__name__
        yield Problem(tar.prefix + SUFFIX, f"damaged or truncated tar: {reason}")


def _check_end(file: tarfile.TarFile) -> None:
    """Whether the last member is followed by zeros: tarfile takes any damage there for the end.

    Raises:
        ReadError: it is not.
    """
    assert file.fileobj is not None
    file.fileobj.seek(file.offset)
    block = file.fileobj.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise tarfile.ReadError("it has no end, so members may be missing")


def _member(tar: Tar, info: tarfile.TarInfo, suffixes: Collection[str]) -> Entry | Problem | None:
    name = info.name.removeprefix("./")
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") and part != ".." for part in path.parts)
    if info.isdir() or hidden or path.suffix.lower() not in suffixes:
        return None
    key = f"{tar.prefix}/{name}"
    try:
        check_key(name)
    except InputError as error:
        return Problem(key, error.message)
    if not info.isreg() or info.issparse():
        return Problem(key, "a link or special file within a tar")
    if info.size > MEMBER_LIMIT:
        return Problem(key, f"{info.size} bytes, too large for an image")
    return MemberEntry(key, tar.path, info.offset_data, info.size, tar.etag)

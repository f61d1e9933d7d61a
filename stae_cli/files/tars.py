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
    members that are no plain files, are problems.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        with tarfile.open(tar.path, "r:") as file:
            for info in file:
                found = _member(tar, info, suffixes)
                if found is not None:
                    yield found
                file.members.clear()  # type: ignore[attr-defined]  # else they pile up
    except (tarfile.TarError, EOFError, ValueError) as error:
        yield Problem(tar.prefix + SUFFIX, f"damaged or truncated tar: {error}")


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
    return MemberEntry(key, tar.path, info.offset_data, info.size, tar.etag)

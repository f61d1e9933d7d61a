"""Lists of sources: text with the path of one input on each line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from stae_cli.errors import UsageError
from stae_cli.storage.entry import FileEntry, Problem
from stae_cli.storage.fsspec_store import is_url


@dataclass(frozen=True)
class SourceList:
    """The lines of a list; relative paths count from `folder`."""

    lines: tuple[str, ...]
    folder: Path

    def entries(self) -> Iterator[FileEntry | Problem]:
        """The file of each line that is not blank, in order.

        Its key is the path as written; that of an absolute path lacks what it begins with.
        """
        for line in self.lines:
            if line.strip():
                yield self._entry(line)

    def _entry(self, line: str) -> FileEntry | Problem:
        path = PurePath(line)
        if is_url(line):
            return Problem(line, "a URL within a list; give it as SOURCE")
        if ".." in path.parts or "\0" in line:
            return Problem(line, "its path leads out of the list's folder; write it absolute")
        key = path.relative_to(path.anchor) if path.anchor else path
        return FileEntry(key.as_posix(), str(self.folder / path))


def read_list(file: Path) -> SourceList:
    """A list that is a file; its paths count from the folder it lies in.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(
            f"cannot read the list `{file}`: {reason}", "check `--from-list`"
        ) from error
    return parse_list(data, file.parent)


def parse_list(data: bytes, folder: Path) -> SourceList:
    """A list out of its bytes: UTF-8, or what the names on the disk are made of."""
    text = data.decode("utf-8-sig", "surrogateescape")
    return SourceList(tuple(line.removesuffix("\r") for line in text.split("\n")), folder)

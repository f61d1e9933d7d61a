"""Lists of paths: what `--from-list` names, in the encodings and with the ends that tools write."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from stae_cli.errors import UsageError
from stae_cli.storage.entry import FileEntry, Problem
from stae_cli.storage.fsspec_store import is_url

MARKS = (  # byte order marks; that of UTF-32 begins like that of UTF-16
    *((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")),
    *((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")),
)
WIDE = 0.4  # share of NULs in UTF-16; a list separated by NULs has fewer


@dataclass(frozen=True)
class SourceList:
    """The lines of a list; paths are relative to `folder`."""

    lines: tuple[str, ...]
    folder: Path

    def entries(self) -> Iterator[FileEntry | Problem]:
        """The file of each line that is not blank, in order.

        Its key is the path as written; of an absolute path, without the root.
        """
        for line in self.lines:
            if line.strip():
                yield self._entry(line)

    def _entry(self, line: str) -> FileEntry | Problem:
        path = PurePath(line)
        if is_url(line):
            return Problem(line, "a URL in a list; give it as SOURCE")
        if ".." in path.parts:
            return Problem(line, "its path leads out of the list's folder; use an absolute path")
        key = path.relative_to(path.anchor) if path.anchor else path
        return FileEntry(key.as_posix(), str(self.folder / path), sidecars=None)


def read_list(file: Path) -> SourceList:
    """Reads a list from a file; its paths are relative to the folder of that file.

    Raises:
        UsageError: it cannot be read, or is not text.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        message = f"cannot read the list `{file}`: {error.strerror or error}"
        raise UsageError(message, "check `--from-list`") from error
    return parse_list(data, file.parent, name=f"`{file}`")


def parse_list(data: bytes, folder: Path, *, name: str) -> SourceList:
    """A list from its bytes.

    It is UTF-8, with or without a byte order mark, or holds the bytes of file names that are not
    UTF-8; or it is UTF-16 or UTF-32 with such a mark, as PowerShell writes it. If it has NULs,
    they end the paths, as those of `find -print0`, and line breaks belong to names.

    Args:
        data: the whole list.
        folder: that its paths are relative to.
        name: of the list, in errors.

    Raises:
        UsageError: it is not text.
    """
    text = _decoded(data, name)
    if "\0" in text:
        return SourceList(tuple(text.split("\0")), folder)
    return SourceList(tuple(line.removesuffix("\r") for line in text.split("\n")), folder)


def _decoded(data: bytes, name: str) -> str:
    for mark, encoding in MARKS:
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError as error:
                message = f"the list {name} is damaged: it begins as {encoding.upper()}, but is not"
                raise UsageError(message, "write it as UTF-8") from error
    if data.count(0) > WIDE * len(data):
        raise UsageError(
            f"the list {name} is not UTF-8; it looks like UTF-16 without a byte order mark",
            "write it as UTF-8",
        )
    return data.decode("utf-8-sig", "surrogateescape")

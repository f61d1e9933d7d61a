"""Parquet files of pictures: their rows as entries, whose keys are the numbers of the rows."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import BinaryIO

from stae_cli.errors import InputError, StaeError
from stae_cli.storage.entry import DamagedArchive, Entry, FileEntry, Problem, SourceState
from stae_cli.storage.notes import Notes
from stae_cli.storage.parquet_rows import Rows
from stae_cli.storage.remote_entry import RemoteEntry

SUFFIX = ".parquet"
DIGITS = 8  # of a row's number: the same in every file, so that more rows rename none
IS_READ = find_spec("pyarrow") is not None
REMEDY = f"`pip install 'stae[parquet]'` reads Parquet files ({SUFFIX})"


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file; the keys of its rows begin with `prefix`, its own key without the suffix.

    `column` is the one of pictures, or empty if there is but one.
    """

    prefix: str
    entry: FileEntry | RemoteEntry
    column: str = ""

    @property
    def etag(self) -> str:
        """What distinguishes this file from later ones of its name; empty for local files."""
        return self.entry.listed.etag if isinstance(self.entry, RemoteEntry) else ""


@dataclass(frozen=True, slots=True)
class Row(Entry):
    """A picture in a row; its state is that of the file, since only reading would give its size."""

    archive: Rows
    number: int

    @property
    def place(self) -> str:
        return f"{self.archive.place}:{self.key}"

    @property
    def root(self) -> str:
        return self.archive.root

    def state(self) -> SourceState:
        return self.archive.listed

    def open(self) -> BinaryIO:
        return io.BytesIO(self.archive.picture(self.number))

    def notes(self) -> Notes:
        return self.archive.notes(self.number)


def parquet_of(entry: FileEntry | RemoteEntry) -> ParquetFile:
    """An entry as a Parquet file.

    Raises:
        StaeError: the package that reads them is missing.
    """
    if not IS_READ:
        raise StaeError(f"`{entry.place}` needs pyarrow", REMEDY)
    prefix = entry.key[: -len(SUFFIX)]
    is_name = prefix.rpartition("/")[2] not in ("", ".", "..")
    return ParquetFile(prefix if is_name else entry.key, entry)


def rows(file: ParquetFile) -> Iterator[Entry | Problem]:
    """The rows of a Parquet file, in its order, without their pictures.

    A file that cannot be read, or that has no column of pictures, is a problem.
    """
    try:
        found = Rows(file.entry, file.column)
    except InputError as error:
        yield DamagedArchive(file.entry.key, error.message)
    except OSError as error:
        yield DamagedArchive(file.entry.key, f"cannot read it: {error.strerror or error}")
    else:
        for number in range(found.count):
            yield Row(f"{file.prefix}/{number:0{DIGITS}}", found, number)
        if not found.count:
            yield DamagedArchive(file.entry.key, "a Parquet file without rows")

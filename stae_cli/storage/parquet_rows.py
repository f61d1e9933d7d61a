"""Rows of an open Parquet file: their pictures in order, a few at a time, and their notes."""

from __future__ import annotations

import io
import os
import threading
import weakref
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from stae_cli.errors import InputError
from stae_cli.storage.entry import FileEntry, SourceState
from stae_cli.storage.notes import NO_LABEL, Notes, checked_caption, checked_label
from stae_cli.storage.parquet_columns import Columns, choose_columns
from stae_cli.storage.remote_entry import RemoteEntry

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

CHANGED = "changed since it was listed"
BATCH = 8 << 20  # bytes of pictures that are read at once, if each is small
MOST_ROWS = 256  # of a batch
KEPT = 64 << 20  # bytes of batches for threads that come later
KEPT_BATCHES = 2
STREAM = 1 << 20  # bytes of a column that are read at once from a local file
BLOCK = 8 << 20  # bytes of an object that are fetched at once
NOTED_GROUPS = 2


class UnreachableError(OSError):
    """A store did not answer; other OSErrors without a number are the Parquet reader's."""


class Rows:
    """The rows of one version of a Parquet file, read by several threads.

    Pictures are wanted nearly in their order. So one reader goes forward through the file, and
    the rows that it has read last are kept; a row before them is read once more, on its own. What
    is held does not grow with the size of row groups, but with that of pages: pyarrow writes
    pages of up to 1024 rows, `datasets` groups of 100 rows or so.

    Args:
        entry: the file.
        wanted: the column of pictures, by default the only one there is.

    Raises:
        InputError: it is damaged, or no column, or several, hold pictures.
        OSError: it cannot be read.
    """

    def __init__(self, entry: FileEntry | RemoteEntry, wanted: str = "") -> None:
        self.entry, self.place, self.root = entry, entry.place, entry.root
        self.listed = entry.state()
        file = self._file()
        weakref.finalize(self, file.close)
        with reading():
            self._table = _opened(file)
            self.columns: Columns = choose_columns(self._table.schema_arrow, wanted)
        self.count = self._table.metadata.num_rows
        groups = range(self._table.metadata.num_row_groups)
        sizes = (self._table.metadata.row_group(i).num_rows for i in groups)
        self._starts = [0, *accumulate(sizes)]  # of each group, and the end
        self._lock, self._noting = threading.Lock(), threading.Lock()
        self._kept: deque[_Batch] = deque()
        self._ahead: Generator[_Batch, None, None] | None = None
        self._in, self._at = 0, 0  # the group of that reader, and the row that it comes to next
        self._damaged: dict[int, str] = {}  # why the rest of a group cannot be read
        self._noted: OrderedDict[int, dict[str, pa.ChunkedArray]] = OrderedDict()

    def picture(self, row: int) -> bytes:
        """The bytes of a row's picture.

        Raises:
            InputError: it has none, or the file is damaged or changed.
            OSError: it cannot be read.
        """
        with self._lock, reading():
            value = self._value(row, self._group(row))
        if isinstance(value, dict):
            if value["bytes"] is None and value.get("path"):
                raise InputError(f"only a path is stored, not the picture: {value['path']!r:.200}")
            value = value["bytes"]
        if value is None:
            raise InputError("the row has no picture")
        return cast(bytes, value)

    def notes(self, row: int) -> Notes:
        """What the row says of its picture; raises what `picture` raises."""
        if not self.columns.notes:
            return Notes()
        group = self._group(row)
        with self._noting, reading():
            if group not in self._noted:
                while len(self._noted) >= NOTED_GROUPS:
                    self._noted.popitem(last=False)
                read = self._table.read_row_group(
                    group, columns=self.columns.notes, use_threads=False
                )
                self._noted[group] = {name: read.column(name) for name in self.columns.notes}
            index, found = row - self._starts[group], self._noted[group]
            said = {name: column[index].as_py() for name, column in found.items()}
        caption, label = said.get(self.columns.caption), said.get(self.columns.label)
        return Notes(
            "" if caption is None else checked_caption(caption, "row"),
            # `datasets` writes -1 for a label that is not known.
            NO_LABEL if label in (None, NO_LABEL) else checked_label(label, "row"),
        )

    def _value(self, row: int, group: int) -> Any:
        if self._at <= row:
            self._read_up_to(row, group)
        for batch in self._kept:
            if batch.begin <= row < batch.end:
                return batch.column[row - batch.begin].as_py()
        with closing(self._forward(row)) as alone:
            batch = next(alone)
        return batch.column[row - batch.begin].as_py()

    def _read_up_to(self, row: int, group: int) -> None:
        if group in self._damaged:
            raise InputError(self._damaged[group])
        if self._ahead is None or group != self._in:
            self._ahead, self._in, self._at = self._forward(row), group, row
        try:
            with reading():
                while self._at <= row:
                    batch = next(self._ahead)
                    self._at = batch.end
                    self._keep(batch)
        except InputError as error:
            self._damaged[group] = error.message
            raise
        except OSError:
            self._ahead = None  # the next row tries again
            raise

    def _keep(self, batch: _Batch) -> None:
        self._kept.append(batch)
        while len(self._kept) > KEPT_BATCHES and sum(kept.size for kept in self._kept) > KEPT:
            self._kept.popleft()

    def _forward(self, row: int) -> Generator[_Batch, None, None]:
        """The rest of a row's group from the batch that the row is in."""
        group = self._group(row)
        held = self._table.metadata.row_group(group)
        size = max(1, min(MOST_ROWS, BATCH * held.num_rows // max(1, held.total_byte_size)))
        begin = self._starts[group]
        with self._file(BLOCK) as file:
            read = _opened(file, self._table.metadata, buffer_size=STREAM)
            for batch in read.iter_batches(
                size, row_groups=[group], columns=[self.columns.image], use_threads=False
            ):
                end = begin + batch.num_rows
                if row < end:
                    self._check()
                    yield _Batch(begin, end, batch.column(0), batch.get_total_buffer_size())
                begin = end
        raise InputError("damaged Parquet file: rows are missing")

    def _group(self, row: int) -> int:
        return bisect_right(self._starts, row) - 1

    def _file(self, block: int = 0) -> BinaryIO:
        """The file, which is the listed one."""
        if isinstance(self.entry, RemoteEntry):
            if self.entry.store.state(self.entry.key) != self.listed:
                raise InputError(f"`{self.place}` {CHANGED}")
            return cast(BinaryIO, io.BufferedReader(_Object(self.entry, block), 1 << 16))
        file = self.entry.open()
        if _state_of(file) != self.listed:
            file.close()
            raise InputError(f"`{self.place}` {CHANGED}")
        return file

    def _check(self) -> None:
        """Checks that a local file is still the listed one; an object's next version is encoded."""
        if isinstance(self.entry, FileEntry) and self.entry.state() != self.listed:
            raise InputError(f"`{self.place}` {CHANGED}")


@dataclass(frozen=True)
class _Batch:
    """Some rows of the column of pictures."""

    begin: int
    end: int
    column: pa.Array
    size: int  # bytes that it keeps in memory


class _Object(io.RawIOBase):
    """An object that is read in ranges, `block` bytes at once."""

    def __init__(self, entry: RemoteEntry, block: int) -> None:
        self._entry, self._size, self._block = entry, entry.listed.size, block
        self._at, self._begin, self._data = 0, 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        starts = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}
        self._at = starts[whence] + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        begin, end = self._at, min(self._at + len(buffer), self._size)
        if begin >= end:
            return 0
        if not self._begin <= begin < self._begin + len(self._data):
            self._begin, self._data = begin, self._fetch(begin, max(end, begin + self._block))
        data = self._data[begin - self._begin : end - self._begin]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _fetch(self, begin: int, end: int) -> bytes:
        try:
            return self._entry.store.read(self._entry.key, begin, min(end, self._size))
        except OSError as error:
            raise UnreachableError(error.strerror or str(error)) from error


def _state_of(file: BinaryIO) -> SourceState:
    found = os.fstat(file.fileno())
    return SourceState(found.st_size, found.st_mtime_ns)


def _opened(
    file: BinaryIO, metadata: pq.FileMetaData | None = None, *, buffer_size: int = 0
) -> pq.ParquetFile:
    import pyarrow.parquet as pq

    return pq.ParquetFile(
        file,
        metadata=metadata,
        buffer_size=buffer_size,
        pre_buffer=False,  # else whole columns are held
        page_checksum_verification=True,
    )


@contextmanager
def reading() -> Iterator[None]:
    """Turns what the Parquet reader raises into InputError.

    Raises:
        InputError: the file is damaged.
        OSError: it cannot be read.
    """
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(_damage(error)) from error
    except OSError as error:
        if isinstance(error, UnreachableError) or error.errno is not None:
            raise
        raise InputError(_damage(error)) from error


def _damage(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "encrypt" in text.lower() or "decrypt" in text.lower():
        return "an encrypted Parquet file"
    return f"damaged Parquet file: {text[:200] or type(error).__name__}"

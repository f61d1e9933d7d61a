"""Archives: tars and Parquet files, whose pictures are found only when they are read."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from stae_cli.errors import InputError, UsageError
from stae_cli.storage import parquet, tars
from stae_cli.storage.entry import Entry, FileEntry, Problem
from stae_cli.storage.parquet import ParquetFile, Row, parquet_of, rows
from stae_cli.storage.parquet_columns import NoPicturesError, SeveralColumnsError
from stae_cli.storage.parquet_rows import Rows
from stae_cli.storage.remote_entry import RemoteEntry
from stae_cli.storage.tars import Member, Tar, members, tar_of

_log = logging.getLogger(__name__)

Archive = Tar | ParquetFile
Inside = Member | Row
SUFFIXES = (*tars.SUFFIXES, parquet.SUFFIX)  # of all that may hold pictures
READ = SUFFIXES if parquet.IS_READ else tars.SUFFIXES
REMEDIES = {} if parquet.IS_READ else {parquet.SUFFIX: parquet.REMEDY}
LOOKS = 16  # Parquet files that are looked into at once: on a store, each takes some requests


def archive_of(entry: FileEntry | RemoteEntry) -> Archive:
    """An entry as the archive that its name says it is.

    Raises:
        StaeError: the package that reads it is missing.
    """
    if entry.key.lower().endswith(parquet.SUFFIX):
        return parquet_of(entry)
    return tar_of(entry)


def with_column(archive: Archive, column: str) -> Archive:
    """The same archive; of a Parquet file, with its column of pictures."""
    return replace(archive, column=column) if isinstance(archive, ParquetFile) else archive


def pictures(archive: Archive, *, suffixes: Collection[str]) -> Iterator[Entry | Problem]:
    """The pictures of an archive, in its order; see `members` and `rows`."""
    if isinstance(archive, ParquetFile):
        return rows(archive)
    return members(archive, suffixes=suffixes)


def without_pictures(archives: Sequence[Archive], *, column: str) -> set[str]:
    """The places of the Parquet files that hold other things than pictures.

    Damaged ones are not among them: reading them will say what is wrong.

    Raises:
        UsageError: it is not clear which column holds the pictures, or none is the wanted one.
    """
    files = [archive for archive in archives if isinstance(archive, ParquetFile)]
    with ThreadPoolExecutor(LOOKS) as pool:
        reasons = dict(zip((f.entry.place for f in files), pool.map(_lack, files), strict=True))
    found = {place for place, reason in reasons.items() if reason}
    for place in found:
        _log.info("`%s`: %s", place, reasons[place])
    if column and files and len(found) == len(files):
        place, reason = next(iter(reasons.items()))
        raise UsageError(f"`{place}`: {reason}", "give `--image-column` one of them")
    return found


def _lack(file: ParquetFile) -> str:
    """Why a file has no pictures; empty if it has, or if it cannot be read."""
    try:
        Rows(file.entry, file.column)
    except NoPicturesError as error:
        return error.message
    except SeveralColumnsError as error:
        raise UsageError(
            f"`{file.entry.place}`: {error.message}", "choose one with `--image-column NAME`"
        ) from error
    except (InputError, OSError):
        return ""
    return ""

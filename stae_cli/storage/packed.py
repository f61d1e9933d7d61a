"""Compressed tars: which files are, and their contents in a temporary file, since readers jump."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import tempfile
import zlib
from typing import IO, BinaryIO, cast

from stae_cli.errors import InputError
from stae_cli.storage.remote_entry import Fetched

SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
MAGICS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
PIECE = 1 << 20  # bytes that are unpacked at once
ALWAYS_ALLOWED = 1 << 30  # bytes
MOST_TIMES = 100  # larger than the file: no pictures compress that well


def compression_of(file: BinaryIO) -> str | None:
    """How a file is compressed, by its first bytes; it is left at its beginning."""
    file.seek(0)
    beginning = file.read(max(map(len, MAGICS)))
    file.seek(0)
    return next((name for magic, name in MAGICS.items() if beginning.startswith(magic)), None)


def unpacked(file: BinaryIO, compression: str, *, size: int) -> Fetched:
    """What a compressed file of `size` bytes holds.

    Raises:
        InputError: it grows too large, or nothing here reads its kind.
        ReadError: it is damaged or truncated.
        OSError: it cannot be read, or the disk is full.
    """
    whole = Fetched(tempfile.TemporaryFile())  # noqa: SIM115
    most = max(ALWAYS_ALLOWED, MOST_TIMES * size)
    try:
        with _opened(file, compression) as contents:
            while piece := contents.read(PIECE):
                whole.append(piece)
                if whole.size > most:
                    raise InputError(f"it unpacks to more than {most} bytes; unpack it yourself")
    except (EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise tarfile.ReadError(f"as {compression}, {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise tarfile.ReadError(f"as {compression}, {error}") from error
    return whole


def _opened(file: BinaryIO, compression: str) -> IO[bytes]:
    if compression == "gzip":
        return cast(IO[bytes], gzip.open(file))
    if compression == "bzip2":
        return cast(IO[bytes], bz2.open(file))
    if compression == "xz":
        return cast(IO[bytes], lzma.open(file))
    raise InputError(f"a tar compressed with {compression}, which is not read; unpack it first")

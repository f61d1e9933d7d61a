"""NumPy's files: headers of `.npy`, read within bounds, and compressed arrays of `.npz`."""

from __future__ import annotations

import ast
import math
import struct
import zipfile
import zlib
from typing import IO, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from stae_cli.errors import InputError

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 10_000  # bytes; numpy's own limit
LARGEST_WHOLE = 8 << 30  # bytes of an array that has to be in memory
BOMB_RATIO, BOMB_BYTES = 100, 64 << 20  # latents hardly compress, except for a few that are all 0
DAMAGED_ZIP = (
    *(zipfile.BadZipFile, zlib.error, EOFError, ValueError, struct.error),
    *(NotImplementedError, RuntimeError),  # an unknown compression, or a password
)
PIECE = 16 << 20

Array = npt.NDArray[np.generic]


class Header(NamedTuple):
    """What a `.npy` says of its array; `length` is the header's, in bytes."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    is_fortran: bool
    length: int


def read_header(file: IO[bytes]) -> Header:
    """The header at the position of a file.

    Raises:
        InputError: truncated, damaged, or not a `.npy`.
    """
    start = _exactly(file, 8)
    if not start.startswith(MAGIC):
        raise InputError("not a NumPy array (.npy)")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(_exactly(file, width), "little")
    if length > LONGEST_HEADER:
        raise InputError("damaged: its header is too long")
    text = _exactly(file, length)
    try:
        values = ast.literal_eval(text.decode("latin-1").strip())
        shape, descr, is_fortran = (values[k] for k in ("shape", "descr", "fortran_order"))
        dtype = np.dtype(descr)
    except (ValueError, SyntaxError, TypeError, LookupError, RecursionError, MemoryError) as error:
        raise InputError("damaged: its header cannot be read") from error
    if not (isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)):
        raise InputError("damaged: its header has no valid shape")
    return Header(shape, dtype, bool(is_fortran), 8 + width + length)


def read_fortran(file: BinaryIO, header: Header) -> Array:
    """The whole array behind a header, in Fortran's order.

    Raises:
        InputError: truncated, or too large.
    """
    data = _whole(file, header)
    return np.frombuffer(data, header.dtype).reshape(header.shape[::-1]).T


def read_member(archive: zipfile.ZipFile, name: str) -> Array:
    """One whole array of a `.npz`.

    Raises:
        InputError: damaged, truncated or too large.
    """
    try:
        info = archive.getinfo(name)
        with archive.open(info) as file:
            header = read_header(file)
            refuse_bomb(header, info)
            if header.is_fortran:
                array = np.frombuffer(_whole(file, header), header.dtype)
                array = array.reshape(header.shape[::-1]).T
            else:
                array = np.frombuffer(_whole(file, header), header.dtype).reshape(header.shape)
            if file.read(1):  # which also compares the checksum
                raise InputError("damaged: it has more data than its header says")
            return array
    except (*DAMAGED_ZIP, LookupError) as error:
        raise InputError(f"damaged: `{name}` cannot be unpacked") from error


def refuse_bomb(header: Header, info: zipfile.ZipInfo) -> None:
    """Refuses a compressed array that is improbably much larger than its data.

    Raises:
        InputError: it is.
    """
    size = math.prod(header.shape) * header.dtype.itemsize
    if size > BOMB_BYTES and size > BOMB_RATIO * info.compress_size:
        raise InputError(
            f"it would unpack {info.compress_size} bytes to {size / 1e9:.1f} GB; "
            "save it with `np.save` if that is meant"
        )


def _whole(file: IO[bytes], header: Header) -> bytearray:
    size = math.prod(header.shape) * header.dtype.itemsize
    if size > LARGEST_WHOLE:
        raise InputError(
            f"an array of {size / 1e9:.1f} GB that has to be read whole; "
            "save it with `np.save`, in C order"
        )
    data = bytearray()  # grows with what is there: a damaged header may claim any size
    while len(data) < size:
        piece = file.read(min(PIECE, size - len(data)))
        if not piece:
            raise InputError("truncated")
        data += piece
    return data


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise InputError("truncated" if data else "empty file")
    return data

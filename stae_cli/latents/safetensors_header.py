"""Headers of safetensors files: read within bounds and checked, written in a fixed order.

Not by safetensors: its reader accepts headers of up to 100 MB, takes a name twice where other
readers may choose the other value, and reads local files only; its writer orders metadata at
random, so that the same latents would not be the same bytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from stae_cli.errors import InputError
from stae_cli.signatures import LONGEST, SAFETENSORS, kind_of

DTYPES = {"F16": "float16", "F32": "float32"}
_CODES = {name: code for code, name in DTYPES.items()}
FOREIGN_DTYPES = DTYPES | {"BF16": "bfloat16", "F64": "float64", "I64": "int64"}
NAMED = 3  # tensors and dtypes of a foreign file
Shape = tuple[int, int, int]


class ForeignFileError(InputError):
    """A valid file that is not ours to read or replace."""


def data_size(shape: Shape, dtype: str) -> int:
    """The bytes of a tensor's data."""
    return math.prod(shape) * np.dtype(dtype).itemsize


def read_tensors(
    file: BinaryIO, size: int, *, limit: int
) -> tuple[dict[str, Any], dict[str, str], int]:
    """Reads the header of a safetensors file.

    Args:
        file: at its beginning.
        size: of the file in bytes.
        limit: of the header in bytes.

    Returns:
        The tensors' unchecked descriptions, the metadata, and where the data begin.

    Raises:
        ForeignFileError: a file of another kind.
        InputError: truncated or damaged, or not a safetensors file.
    """
    prefix = file.read(8)
    if len(prefix) < 8:
        raise InputError("truncated" if prefix else "empty file")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(limit, size - 8):
        kind = kind_of(prefix + file.read(LONGEST - len(prefix)))
        if kind not in (None, SAFETENSORS):  # that may be ours, and truncated
            raise ForeignFileError(f"{kind}, not a safetensors file")
        raise InputError("truncated, not a safetensors file, or with a damaged header")
    tensors = json_object(file.read(length))
    metadata = tensors.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise InputError("not a safetensors file, or with a damaged header")
    return tensors, metadata, 8 + length


def json_object(text: bytes | str) -> dict[str, Any]:
    """A JSON object from a header.

    Raises:
        InputError: it is not one, or has a name twice: readers would not agree on which counts.
    """
    try:
        value = _DECODER.decode(text.decode() if isinstance(text, bytes) else text)
    except (ValueError, RecursionError) as error:
        raise InputError("not a safetensors file, or with a damaged header") from error
    if not isinstance(value, dict):
        raise InputError("not a safetensors file, or with a damaged header")
    return value


def json_text(value: object) -> str:
    """A value as JSON for a header: short, and readable in any script."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # the name of a file, in bytes that are not UTF-8
        return json.dumps(value, separators=(",", ":"))
    return text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a name twice")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def checked_tensor(name: str, description: object) -> tuple[Shape, str, int, int]:
    """One tensor's shape and dtype, and where its data begin and end, in bytes after the header.

    Raises:
        InputError: it does not describe a latent.
    """
    if not isinstance(description, dict):
        raise InputError(f"damaged: `{name}` is not a tensor")
    shape: Any = description.get("shape")
    dtype, offsets = description.get("dtype"), description.get("data_offsets")
    if not _is_shape(shape) or not isinstance(dtype, str) or dtype not in DTYPES:
        raise InputError(f"damaged: `{name}` is {dtype} {shape}")
    if not (isinstance(offsets, list) and len(offsets) == 2 and type(offsets[0]) is int):
        raise InputError(f"damaged: `{name}` has no offsets")
    begin, end = offsets
    whole, dtype = (shape[0], shape[1], shape[2]), DTYPES[dtype]
    if end != begin + data_size(whole, dtype):
        raise InputError(f"damaged: `{name}` has the wrong size")
    return whole, dtype, begin, end


def described(tensors: Mapping[str, Any]) -> str:
    """What a foreign file holds, in a few words: `1 bfloat16 tensor (latents)`."""
    kinds = (str(t.get("dtype")) if isinstance(t, dict) else "?" for t in tensors.values())
    dtypes = sorted({FOREIGN_DTYPES.get(kind, kind)[:20] for kind in kinds})[:NAMED]
    names = [name[:40] for name in list(tensors)[:NAMED]] + ["..."] * (len(tensors) > NAMED)
    if not names:
        return "no tensors"
    noun = "tensor" if len(tensors) == 1 else "tensors"
    return f"{len(tensors)} {' and '.join(dtypes)} {noun} ({', '.join(names)})"


def header_bytes(metadata: Mapping[str, str], tensors: Mapping[str, tuple[Shape, str]]) -> bytes:
    """The header of a file whose tensors, given as shape and dtype, follow in this order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = 0
    for name, (shape, dtype) in tensors.items():
        end = begin + data_size(shape, dtype)
        header[name] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json_text(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns its data
    return struct.pack("<Q", len(text)) + text


def _is_shape(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    return all(type(size) is int and 0 < size < 1 << 32 for size in value)

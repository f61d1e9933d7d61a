"""Latent files, format 1: one picture's latent as safetensors, with what it was made from."""

from __future__ import annotations

import json
import math
import os
import re
import struct
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from stae_cli.errors import InputError

FORMAT = "stae-latents"
FORMAT_VERSION = "1"
TENSOR = "latents"
SUFFIX = ".safetensors"
DTYPES = {"F16": "float16", "F32": "float32"}
_NAMES = {name: code for code, name in DTYPES.items()}
HEADER_LIMIT = 1 << 20  # bytes; ours take about 800

Latent = npt.NDArray[np.floating]  # (C, h, w)


class ForeignFileError(InputError):
    """A sound safetensors file that is not ours to read or to replace."""


@dataclass(frozen=True)
class LatentInfo:
    """What a latent file records: the weights, the source, and the sizes to restore."""

    stae_version: str
    architecture: str
    weights: str
    weights_sha256: str
    downsample: int
    latent_channels: int
    source: str
    source_size: int
    source_mtime_ns: int
    width: int
    height: int
    original_width: int
    original_height: int
    prep: str
    compute_dtype: str

    def to_metadata(self) -> dict[str, str]:
        """The safetensors metadata: strings only."""
        values = {key: str(value) for key, value in vars(self).items()}
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **values}


@dataclass(frozen=True)
class LatentHeader:
    """The checked header of a latent file."""

    info: LatentInfo
    shape: tuple[int, int, int]
    dtype: str


def write_latent(path: Path, latent: Latent, info: LatentInfo) -> int:
    """Writes one latent file to exactly `path` and returns its size in bytes.

    The header is put together here, since safetensors' own writer orders metadata at random: the
    same latent should be the same file.

    Args:
        path: the file.
        latent: (C, h, w) float16 or float32.
        info: what to record.
    """
    data = latent.astype(latent.dtype.newbyteorder("<"), order="C", copy=False).tobytes()
    tensor = {"dtype": _NAMES[latent.dtype.name], "shape": latent.shape}
    header = {"__metadata__": info.to_metadata(), TENSOR: tensor | {"data_offsets": [0, len(data)]}}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns its data
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return 8 + len(text) + len(data)


def read_header(path: Path) -> LatentHeader:
    """Reads a latent file's header alone, and checks that the file is whole.

    Raises:
        ForeignFileError: a safetensors file that is no latent of ours.
        InputError: absent, unreadable, truncated or damaged.
    """
    try:
        with path.open("rb") as file:
            return _parse(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise InputError(f"cannot read it: {error.strerror or error}") from error


def read_latent(path: Path) -> tuple[Latent, LatentHeader]:
    """Reads a latent (C, h, w) with its header; raises what `read_header` raises."""
    header = read_header(path)
    try:
        return load(path.read_bytes())[TENSOR], header
    except OSError as error:
        raise InputError(f"cannot read it: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(f"damaged: {error}") from error


def _parse(file: BinaryIO, size: int) -> LatentHeader:
    prefix = file.read(8)
    if len(prefix) < 8:
        raise InputError("truncated" if prefix else "empty file")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(HEADER_LIMIT, size - 8):
        raise InputError("no safetensors file, truncated, or with a damaged header")
    header = _json_object(file.read(length))
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ForeignFileError("a safetensors file, but no stae latent")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise ForeignFileError(
            f"latent format {metadata.get('format_version')}, which this version does not read"
        )
    shape, dtype = _checked_tensor(header, data_size=size - 8 - length)
    info = _info(metadata)
    _check_shape(shape, info)
    return LatentHeader(info, shape, dtype)


def _json_object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError("no safetensors file, or with a damaged header") from error
    if not isinstance(value, dict):
        raise InputError("no safetensors file, or with a damaged header")
    return value


def _checked_tensor(tensors: dict[str, Any], data_size: int) -> tuple[tuple[int, int, int], str]:
    tensor = tensors.get(TENSOR)
    if len(tensors) != 1 or not isinstance(tensor, dict):
        raise InputError(f"damaged: it should hold one tensor, `{TENSOR}`")
    shape: Any = tensor.get("shape")
    dtype, offsets = tensor.get("dtype"), tensor.get("data_offsets")
    if not _is_shape(shape) or dtype not in DTYPES:
        raise InputError(f"damaged: `{TENSOR}` is {dtype} {shape}")
    expected = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    if offsets != [0, expected] or data_size != expected:
        raise InputError("truncated" if data_size < expected else "damaged: wrong size")
    return (shape[0], shape[1], shape[2]), DTYPES[dtype]


def _is_shape(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    return all(type(size) is int and 0 < size < 1 << 32 for size in value)


def _info(metadata: dict[str, Any]) -> LatentInfo:
    values: dict[str, Any] = {}
    for field in fields(LatentInfo):
        text = metadata.get(field.name)
        number = field.type == "int"
        if not isinstance(text, str) or (number and not re.fullmatch(r"-?[0-9]{1,19}", text)):
            raise InputError(f"damaged: its metadata has no sound `{field.name}`")
        values[field.name] = int(text) if number else text
    return LatentInfo(**values)


def _check_shape(shape: tuple[int, int, int], info: LatentInfo) -> None:
    if min(info.downsample, info.width, info.height) < 1:
        raise InputError("damaged: impossible sizes in its metadata")
    rows = -(-info.height // info.downsample)
    columns = -(-info.width // info.downsample)
    if shape != (info.latent_channels, rows, columns):
        raise InputError(
            f"damaged: a latent of {shape} cannot be {info.width}x{info.height} pixels"
        )

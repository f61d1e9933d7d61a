"""Latent files, format 1: one picture's latent as safetensors, with what it was made from."""

from __future__ import annotations

import os
import re
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from stae_cli.errors import InputError
from stae_cli.latents.safetensors_header import (
    ForeignFileError,
    Shape,
    TensorPlace,
    checked_tensor,
    header_bytes,
    read_tensors,
)

FORMAT = "stae-latents"
FORMAT_VERSION = "1"
TENSOR = "latents"
SUFFIX = ".safetensors"
HEADER_LIMIT = 1 << 20  # bytes; ours take about 800
LATER_FIELDS = {"source_etag": "", "data_crc32": ""}  # absent where they say nothing

Latent = npt.NDArray[np.floating]  # (C, h, w)
Data = bytes | memoryview  # of one latent
HALF_INFINITY = 0x7C00  # float16's bits, the sign aside; what lies above is NaN


class DamagedDataError(InputError):
    """A latent whose header is sound and whose data are not."""


@dataclass(frozen=True, slots=True)
class LatentInfo:
    """What is recorded of a latent: the weights, the source, and the sizes to restore.

    `source_mtime_ns` is 0 for objects of a store, which have a `source_etag` instead.
    `data_crc32` is of the latent's bytes, as `checksum` gives it.
    """

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
    source_etag: str = ""
    data_crc32: str = ""

    def to_metadata(self) -> dict[str, str]:
        """The safetensors metadata of a file of its own: strings only."""
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **self.to_strings()}

    def to_strings(self) -> dict[str, str]:
        """Every field that says something, as text."""
        values = {field.name: str(getattr(self, field.name)) for field in fields(self)}
        return {key: text for key, text in values.items() if text or key not in LATER_FIELDS}


@dataclass(frozen=True)
class LatentHeader:
    """The checked header of a latent file."""

    info: LatentInfo
    shape: Shape
    dtype: str


def write_latent(path: Path, latent: Latent, info: LatentInfo) -> int:
    """Writes one latent file to exactly `path` and returns its size in bytes.

    Args:
        path: the file.
        latent: (C, h, w) float16 or float32.
        info: what to record.
    """
    channels, rows, columns = latent.shape
    tensors, data = {TENSOR: ((channels, rows, columns), latent.dtype.name)}, latent_bytes(latent)
    header = header_bytes(replace(info, data_crc32=checksum(data)).to_metadata(), tensors)
    with path.open("wb") as file:
        file.write(header)
        file.write(data)
    return len(header) + len(data)


def latent_bytes(latent: Latent) -> memoryview:
    """The data of a latent as files hold it: contiguous and little-endian; no copy if it is."""
    stored = latent.astype(latent.dtype.newbyteorder("<"), order="C", copy=False)
    return stored.reshape(-1).view(np.uint8).data


def checksum(data: Data) -> str:
    """The CRC-32 of a latent's bytes, in hexadecimal."""
    return f"{zlib.crc32(data):08x}"


def check_data(data: Data, info: LatentInfo) -> None:
    """Whether bytes that were read are those that were written; true of any if nothing is known.

    Raises:
        DamagedDataError: they are not.
    """
    if info.data_crc32 and checksum(data) != info.data_crc32:
        raise DamagedDataError("damaged: its data are not those that were written")


def latent_of(data: Data, shape: Shape, dtype: str) -> Latent:
    """The inverse of `latent_bytes`, in an array of its own."""
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(shape).astype(dtype)


def read_header(path: Path) -> LatentHeader:
    """Reads a latent file's header alone, and checks that the file is whole.

    Raises:
        ForeignFileError: a safetensors file that is no latent of ours.
        InputError: absent, unreadable, truncated or damaged.
    """
    try:
        with path.open("rb") as file:
            return _parse(file, os.fstat(file.fileno()).st_size)[0]
    except OSError as error:
        raise InputError(f"cannot read it: {error.strerror or error}") from error


def read_latent(path: Path) -> tuple[Latent, LatentHeader]:
    """Reads a latent (C, h, w) with its header; raises what `read_header` raises."""
    try:
        with path.open("rb") as file:
            header, place = _parse(file, os.fstat(file.fileno()).st_size)
            data = file.read(place.size)
            check_data(data, header.info)
            return latent_of(data, header.shape, header.dtype), header
    except OSError as error:
        raise InputError(f"cannot read it: {error.strerror or error}") from error


def _parse(file: BinaryIO, size: int) -> tuple[LatentHeader, TensorPlace]:
    """The header; leaves the file at its data."""
    tensors, metadata, begin = read_tensors(file, size, limit=HEADER_LIMIT)
    header, place = parse_latent(tensors, metadata, data_size=size - begin)
    return header, place


def parse_latent(
    tensors: Mapping[str, Any], metadata: Mapping[str, Any], *, data_size: int
) -> tuple[LatentHeader, TensorPlace]:
    """Checks what `read_tensors` found in a file of one latent.

    Raises:
        ForeignFileError: no latent of ours.
        InputError: truncated or damaged.
    """
    check_format(metadata, FORMAT)
    if len(tensors) != 1 or TENSOR not in tensors:
        raise InputError(f"damaged: it should hold one tensor, `{TENSOR}`")
    place = checked_tensor(TENSOR, tensors[TENSOR])
    if place.begin != 0 or data_size != place.size:
        raise InputError("truncated" if data_size < place.size else "damaged: wrong size")
    info = parse_info(metadata)
    check_shape(place.shape, info)
    return LatentHeader(info, place.shape, place.dtype), place


def check_format(metadata: Mapping[str, Any], name: str) -> None:
    """Whether metadata says that a file is of this format, in a version that we read.

    Raises:
        ForeignFileError: it is not.
    """
    if metadata.get("format") != name:
        raise ForeignFileError("a safetensors file, but no stae latent")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise ForeignFileError(
            f"latent format {metadata.get('format_version')}, which this version does not read"
        )


def parse_info(metadata: Mapping[str, Any]) -> LatentInfo:
    """The fields of a latent out of untrusted metadata.

    Raises:
        InputError: one is absent or no such value.
    """
    values: dict[str, Any] = {}
    for field in fields(LatentInfo):
        text = metadata.get(field.name, LATER_FIELDS.get(field.name))
        number = field.type == "int"
        if not isinstance(text, str) or (number and not re.fullmatch(r"-?[0-9]{1,19}", text)):
            raise InputError(f"damaged: its metadata has no sound `{field.name}`")
        values[field.name] = int(text) if number else sys.intern(text)
    return LatentInfo(**values)


def check_shape(shape: Shape, info: LatentInfo) -> None:
    """Whether a latent's shape fits the sizes that are recorded of it.

    Raises:
        InputError: it does not.
    """
    if min(info.downsample, info.width, info.height) < 1:
        raise InputError("damaged: impossible sizes in its metadata")
    rows = -(-info.height // info.downsample)
    columns = -(-info.width // info.downsample)
    if shape != (info.latent_channels, rows, columns):
        raise InputError(
            f"damaged: a latent of {shape} cannot be {info.width}x{info.height} pixels"
        )


def is_finite(latent: Latent) -> bool:
    """Whether a latent holds neither NaN nor infinity; of float16 many times faster than numpy."""
    if latent.dtype != np.float16 or not latent.size:
        return bool(np.isfinite(latent).all())
    bits = latent.view(np.uint16) & 0x7FFF
    return bool(bits.max() < HALF_INFINITY)

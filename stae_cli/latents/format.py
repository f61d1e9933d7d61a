"""Latent files, format 1: a picture's latent as safetensors, with a record of its source."""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from stae_cli.errors import InputError
from stae_cli.latents.safetensors_header import (
    ForeignFileError,
    Shape,
    checked_tensor,
    data_size,
    described,
    header_bytes,
)
from stae_cli.storage.entry import Entry, SourceState

FORMAT = "stae-latents"
FORMAT_VERSION = "1"
TENSOR = "latents"
SUFFIX = ".safetensors"
HEADER_LIMIT = 1 << 20  # bytes; ours take about 800
LATER_FIELDS = dict.fromkeys(  # omitted if empty
    ("source_etag", "source_root", "source_xxh3", "data_crc32"), ""
)
SEAL = "info_crc32"  # the checksum of a latent's information

Latent = npt.NDArray[np.floating]  # (C, h, w)
Data = bytes | memoryview  # of one latent
HALF_INFINITY = 0x7C00  # the bits of float16, without the sign; NaN is above


class DamagedDataError(InputError):
    """A latent with a valid header and damaged data."""


@dataclass(frozen=True, slots=True)
class LatentInfo:
    """What is recorded of a latent: its weights, its source, and the sizes to restore.

    Sizes are in pixels, `source_size` in bytes. `source_mtime_ns` is 0 for objects of a store,
    which have a `source_etag` instead. `source_root` identifies the folder or URL that `source` is
    relative to, `source_xxh3` is the hash of the source's bytes, and `data_crc32` the checksum of
    the latent's. Earlier versions did not record the last three.
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
    source_root: str = ""
    source_xxh3: str = ""
    data_crc32: str = ""

    @property
    def source_state(self) -> SourceState:
        """The source's state when it was encoded."""
        return SourceState(self.source_size, self.source_mtime_ns, self.source_etag)

    def to_metadata(self) -> dict[str, str]:
        """The safetensors metadata of a file of one latent: strings only."""
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **self.to_strings()}

    def seal(self, shape: Shape, dtype: str) -> dict[str, str]:
        """The checksum of all fields and of the latent's shape and dtype, for its metadata."""
        text = "\n".join(map(str, (*_sealed_fields(self), *shape, dtype)))
        return {SEAL: checksum(text.encode(errors="surrogatepass"))}

    def to_strings(self) -> dict[str, str]:
        """All fields as text, without empty optional ones."""
        values = zip(FIELDS, map(str, _all_fields(self)), strict=True)
        return {name: text for name, text in values if text or name not in LATER_FIELDS}


@dataclass(frozen=True, slots=True)
class StoredLatent:
    """One latent in a file or a shard: where it is, its shape, and what is recorded of it.

    `key` is a path with `/`: that of its file without the suffix, or its name in a shard. `file`
    holds its data from byte `begin` on, and was in `state` when the header was read. `is_alone` is
    False in a shard.
    """

    key: str
    info: LatentInfo
    shape: Shape
    dtype: str
    file: Entry
    state: SourceState
    begin: int
    is_alone: bool

    @property
    def label(self) -> str:
        """Its name in messages: its file, and its key in a shard."""
        return self.file.key if self.is_alone else f"{self.file.key}:{self.key}"

    @property
    def size(self) -> int:
        """The bytes of its data."""
        return data_size(self.shape, self.dtype)

    def read(self) -> Latent:
        """The latent (C, h, w).

        Raises:
            InputError: the file has changed since its header was read, or its data are damaged.
            OSError: it cannot be read.
        """
        with self.file.open() as file:
            return self.read_from(file)

    def read_from(self, file: BinaryIO) -> Latent:
        """The latent from its file, already open; raises what `read` raises."""
        file.seek(self.begin)
        data = file.read(self.size)
        if self.file.state() != self.state or len(data) != self.size:
            raise InputError("it changed while it was read")
        if self.info.data_crc32 and checksum(data) != self.info.data_crc32:
            raise DamagedDataError("damaged: its data are not those that were written")
        stored = np.frombuffer(data, np.dtype(self.dtype).newbyteorder("<"))
        return stored.reshape(self.shape).astype(self.dtype)


FIELDS = tuple(field.name for field in fields(LatentInfo))
_all_fields = attrgetter(*FIELDS)
# Fields of later versions must not join these: what earlier ones wrote would look damaged.
_sealed_fields = _all_fields


def write_latent(path: Path, latent: Latent, info: LatentInfo) -> int:
    """Writes one latent file to exactly `path` and returns its size in bytes.

    Args:
        path: the file.
        latent: (C, h, w) float16 or float32.
        info: what to record.
    """
    channels, rows, columns = latent.shape
    tensors, data = {TENSOR: ((channels, rows, columns), latent.dtype.name)}, latent_bytes(latent)
    info = replace(info, data_crc32=checksum(data))
    header = header_bytes(info.to_metadata() | info.seal(*tensors[TENSOR]), tensors)
    with path.open("wb") as file:
        file.write(header)
        file.write(data)
    return len(header) + len(data)


def latent_bytes(latent: Latent) -> memoryview:
    """A latent's data as files hold them: contiguous, little-endian; a copy only if needed."""
    stored = latent.astype(latent.dtype.newbyteorder("<"), order="C", copy=False)
    return stored.reshape(-1).view(np.uint8).data


def checksum(data: Data) -> str:
    """The CRC-32 of a latent's bytes, in hexadecimal."""
    return f"{zlib.crc32(data):08x}"


def parse_latent(
    tensors: Mapping[str, Any],
    metadata: Mapping[str, Any],
    data: int,
    *,
    file: Entry,
    state: SourceState,
) -> StoredLatent:
    """The latent of a file of its own, from what `read_tensors` found there.

    Raises:
        ForeignFileError: not a latent of ours.
        InputError: truncated or damaged.
    """
    check_format(tensors, metadata, FORMAT)
    if len(tensors) != 1 or TENSOR not in tensors:
        raise InputError(f"damaged: it should hold one tensor, `{TENSOR}`")
    shape, dtype, begin, end = checked_tensor(TENSOR, tensors[TENSOR])
    if begin != 0 or data + end != state.size:
        raise InputError("truncated" if state.size < data + end else "damaged: wrong size")
    info = parse_info(metadata)
    check_shape(shape, info)
    check_seal(metadata, info, shape, dtype)
    key = file.key[: -len(SUFFIX)] if file.key.lower().endswith(SUFFIX) else file.key
    return StoredLatent(key, info, shape, dtype, file, state, data, True)


def check_format(tensors: Mapping[str, Any], metadata: Mapping[str, Any], name: str) -> None:
    """Checks that metadata are those of this format, in a version that we read.

    Raises:
        ForeignFileError: they are not.
    """
    if metadata.get("format") != name:
        raise ForeignFileError(f"a safetensors file of {described(tensors)}, not a stae latent")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise ForeignFileError(
            f"latent format {metadata.get('format_version')}, which this version does not read"
        )


def parse_info(metadata: Mapping[str, Any]) -> LatentInfo:
    """Parses the fields of a latent from untrusted metadata.

    Raises:
        InputError: one is absent or not valid.
    """
    values: dict[str, Any] = {}
    for field in fields(LatentInfo):
        text = metadata.get(field.name, LATER_FIELDS.get(field.name))
        number = field.type == "int"
        if not isinstance(text, str) or (number and not re.fullmatch(r"-?[0-9]{1,19}", text)):
            raise InputError(f"damaged: its metadata has no valid `{field.name}`")
        values[field.name] = int(text) if number else sys.intern(text)
    return LatentInfo(**values)


def check_shape(shape: Shape, info: LatentInfo) -> None:
    """Checks that a latent's shape fits the recorded sizes.

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


def check_seal(metadata: Mapping[str, Any], info: LatentInfo, shape: Shape, dtype: str) -> None:
    """Checks what is recorded of a latent against its checksum, which earlier files lack.

    Raises:
        InputError: it is not what was written.
    """
    if SEAL in metadata and info.seal(shape, dtype)[SEAL] != metadata[SEAL]:
        raise InputError("damaged: its metadata are not those that were written")


def is_finite(latent: Latent) -> bool:
    """Whether a latent has no NaN or infinity; for float16 many times faster than numpy."""
    if latent.dtype != np.float16 or not latent.size:
        return bool(np.isfinite(latent).all())
    bits = latent.view(np.uint16) & 0x7FFF
    return bool(bits.max() < HALF_INFINITY)

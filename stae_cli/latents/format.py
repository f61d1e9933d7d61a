"""Latent files, format 1: a picture's latent as safetensors, with a record of its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from stae_cli.errors import InputError
from stae_cli.latents.info import (
    Data,
    LatentInfo,
    check_seal,
    check_shape,
    checksum,
    parse_info,
)
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
TENSOR, FLIPPED_TENSOR = "latents", "latents_flip"
SUFFIX = ".safetensors"
FLIPPED_SUFFIX = "//flip"  # of tensors in shards; no key has two slashes in a row

Latent = npt.NDArray[np.floating]  # (C, h, w)
HALF_INFINITY = 0x7C00  # the bits of float16, without the sign; NaN is above


class DamagedDataError(InputError):
    """A latent with a valid header and damaged data."""


@dataclass(frozen=True, slots=True)
class StoredLatent:
    """One latent in a file or a shard: where it is, its shape, and what is recorded of it.

    `key` is a path with `/`: that of its file without the suffix, or its name in a shard. `file`
    holds its data from byte `begin` on, and was in `state` when the header was read. `is_alone` is
    False in a shard. If it has a flip, the latent of the mirrored picture, that has the same shape
    and follows it.
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
        """The bytes of its data, without a flip."""
        return data_size(self.shape, self.dtype)

    @property
    def whole_size(self) -> int:
        """The bytes of its data, and of its flip's."""
        return self.size * (1 + self.has_flip)

    @property
    def has_flip(self) -> bool:
        """Whether the latent of the mirrored picture is stored too."""
        return bool(self.info.flip_crc32)

    @property
    def tensors(self) -> dict[str, tuple[Shape, str]]:
        """The shape and dtype of each of its tensors, by their names in the file."""
        names = (TENSOR, FLIPPED_TENSOR) if self.is_alone else (self.key, self.key + FLIPPED_SUFFIX)
        return dict.fromkeys(names[: 1 + self.has_flip], (self.shape, self.dtype))

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
        return self._read(file, self.begin, self.info.data_crc32)

    def read_both(self) -> list[Latent]:
        """The latent, and its flip if it has one; raises what `read` raises."""
        with self.file.open() as file:
            return self.read_both_from(file)

    def read_both_from(self, file: BinaryIO) -> list[Latent]:
        """Like `read_both`, from its file, already open."""
        found = [self.read_from(file)]
        if self.has_flip:
            found.append(self._read(file, self.begin + self.size, self.info.flip_crc32))
        return found

    def _read(self, file: BinaryIO, begin: int, crc32: str) -> Latent:
        file.seek(begin)
        data = file.read(self.size)
        if self.file.state() != self.state or len(data) != self.size:
            raise InputError("it changed while it was read")
        if crc32 and checksum(data) != crc32:
            raise DamagedDataError("damaged: its data are not those that were written")
        stored = np.frombuffer(data, np.dtype(self.dtype).newbyteorder("<"))
        return stored.reshape(self.shape).astype(self.dtype)


def write_latent(
    path: Path, latent: Latent, info: LatentInfo, *, flip: Latent | None = None
) -> int:
    """Writes one latent file to exactly `path` and returns its size in bytes.

    Args:
        path: the file.
        latent: (C, h, w) float16 or float32.
        info: what to record.
        flip: the latent of the mirrored picture, of the same shape and dtype.
    """
    channels, rows, columns = latent.shape
    kind = (channels, rows, columns), latent.dtype.name
    names = (TENSOR,) if flip is None else (TENSOR, FLIPPED_TENSOR)
    data = [latent_bytes(each) for each in (latent, flip) if each is not None]
    info = with_checksums(info, data)
    header = header_bytes(file_metadata(info) | info.seal(*kind), dict.fromkeys(names, kind))
    with path.open("wb") as file:
        return file.write(header) + sum(file.write(each) for each in data)


def file_metadata(info: LatentInfo) -> dict[str, str]:
    """The safetensors metadata of a file of one latent, without the seal."""
    return {"format": FORMAT, "format_version": FORMAT_VERSION, **info.to_strings()}


def with_checksums(info: LatentInfo, data: Sequence[Data]) -> LatentInfo:
    """The information of a latent with the checksums of its data, and of its flip's if given."""
    flip = checksum(data[1]) if data[1:] else ""
    return replace(info, data_crc32=checksum(data[0]), flip_crc32=flip)


def latent_bytes(latent: Latent) -> memoryview:
    """A latent's data as files hold them: contiguous, little-endian; a copy only if needed."""
    stored = latent.astype(latent.dtype.newbyteorder("<"), order="C", copy=False)
    return stored.reshape(-1).view(np.uint8).data


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
    if TENSOR not in tensors or not tensors.keys() <= {TENSOR, FLIPPED_TENSOR}:
        raise InputError(f"damaged: it should hold one tensor, `{TENSOR}`")
    info = parse_info(metadata)
    shape, dtype, begin, end = checked_latent(tensors, TENSOR, FLIPPED_TENSOR, info)
    if begin != 0 or data + end != state.size:
        raise InputError("truncated" if state.size < data + end else "damaged: wrong size")
    check_seal(metadata, info, shape, dtype)
    key = file.key[: -len(SUFFIX)] if file.key.lower().endswith(SUFFIX) else file.key
    return StoredLatent(key, info, shape, dtype, file, state, data, True)


def checked_latent(
    tensors: Mapping[str, Any], name: str, flip: str, info: LatentInfo
) -> tuple[Shape, str, int, int]:
    """One latent's shape and dtype, and where its data and its flip's begin and end.

    Args:
        tensors: the unchecked descriptions of a file's tensors.
        name: of the latent.
        flip: the name that its flip has, if it has one.
        info: what is recorded of it.

    Raises:
        InputError: they do not describe what is recorded.
    """
    shape, dtype, begin, end = checked_tensor(name, tensors[name])
    check_shape(shape, info)
    if (flip in tensors) != bool(info.flip_crc32):
        raise InputError(f"damaged: `{name}` has a flip that is not recorded, or has lost it")
    if flip in tensors:
        *kind, middle, last = checked_tensor(flip, tensors[flip])
        if (kind, middle) != ([shape, dtype], end):
            raise InputError(f"damaged: `{flip}` does not follow its latent, or differs from it")
        end = last
    return shape, dtype, begin, end


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


def is_finite(latent: Latent) -> bool:
    """Whether a latent has no NaN or infinity; for float16 many times faster than numpy."""
    if latent.dtype != np.float16 or not latent.size:
        return bool(np.isfinite(latent).all())
    bits = latent.view(np.uint16) & 0x7FFF
    return bool(bits.max() < HALF_INFINITY)

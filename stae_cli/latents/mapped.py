"""Mapped latents: memory maps of the data that an index lists, checked when first used."""

from __future__ import annotations

import errno
import mmap
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from stae_cli.errors import StaeError
from stae_cli.latents.checksums import crc32 as checksum
from stae_cli.latents.format import Latent, is_finite
from stae_cli.latents.index import NO_CHECKSUM, LatentIndex, Location
from stae_cli.storage.entry import Entry, SourceState

OPEN_MAPS = 64  # per process; systems allow about 65,000
UNMAPPED = (errno.ENODEV, errno.ENOSYS)  # from file systems that map nothing, as some in FUSE

Map = npt.NDArray[np.uint8]


class LatentMaps:
    """The data of an index, memory-mapped when they are needed, and checked when first used.

    Each process maps at most `OPEN_MAPS` files. What one process has checked its forks need not. A
    file that was replaced since its header was read is noticed when it is next mapped. Truncating
    a mapped file in place kills the process, as with any memory map; stae never does that.

    Args:
        index: what is read.
        check: whether to compare checksums, and to look for NaN and infinity.
    """

    def __init__(self, index: LatentIndex, *, check: bool) -> None:
        self._index = index
        self._checked: mmap.mmap | bytearray | None = None
        if check and len(index):
            self._checked = mmap.mmap(-1, len(index))  # shared with forks

    def latent(self, number: int, where: Location, *, flipped: bool = False) -> Latent:
        """The latent of that number, (C, h, w), in its file: a read-only view.

        With `flipped`, that of the mirrored picture, which must be there.

        Raises:
            StaeError: the file is absent, has changed, or cannot be read; or the data are damaged.
        """
        shape = (where.channels, where.rows, where.columns)
        size = where.channels * where.rows * where.columns * where.itemsize
        begin = where.begin + size * flipped
        data = _map(*self._index.files[where.file])[begin : begin + size]
        crc32, bit = (where.flip_crc32, 2) if flipped else (where.crc32, 1)
        latent: Latent = data.view(f"<f{where.itemsize}").reshape(shape)
        if self._checked is not None and not self._checked[number] & bit:
            if crc32 not in (NO_CHECKSUM, checksum(data)):
                raise self._damaged(number, "its data are not those that were written")
            if not is_finite(latent):
                raise self._damaged(number, "it holds NaN or infinity")
            self._checked[number] |= bit
        return latent

    def _damaged(self, number: int, reason: str) -> StaeError:
        entry, _ = self._index.files[self._index.location(number).file]
        return StaeError(
            f"`{self._index.key(number)}` in `{entry.place}` is damaged: {reason}",
            "run the same `stae encode` again with `--check`, which encodes damaged latents again",
        )

    def __getstate__(self) -> dict[str, Any]:
        checked = None if self._checked is None else bytearray(self._checked[:])
        return {"_index": self._index, "_checked": checked}


def _bytes_of(place: str) -> Map:
    try:
        return np.asarray(np.memmap(place, np.uint8, "r"))  # of a class that is cut faster
    except OSError as error:
        if error.errno not in UNMAPPED:
            raise
        return np.fromfile(place, np.uint8)


@lru_cache(OPEN_MAPS)  # of all datasets of the process: each takes an open file
def _map(entry: Entry, state: SourceState) -> Map:
    try:
        mapped = _bytes_of(entry.place)
        if entry.state() != state:  # now, so that no other file can have been mapped
            raise StaeError(f"`{entry.place}` has changed since it was listed", "start again")
        return mapped
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StaeError(f"cannot read `{entry.place}`: {reason}", "start again") from error

"""Boxes, which JPEG 2000 and AVIF files are made of."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple


class Box(NamedTuple):
    """Its name, and where its content begins and ends in the file."""

    name: bytes
    start: int
    end: int

    def data(self, file: BinaryIO) -> bytes:
        file.seek(self.start)
        return file.read(self.end - self.start)


def boxes(file: BinaryIO, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """The boxes between two places of a file, without those inside of them.

    Raises:
        ValueError: a box has no possible size.
    """
    end = file.seek(0, 2) if end is None else end
    while start + 8 <= end:
        file.seek(start)
        size, name = struct.unpack(">I4s", file.read(8))
        content = start + 8
        if size == 1:
            size = int.from_bytes(file.read(8), "big")
            content += 8
        stop = start + size if size else end
        if stop < content:
            raise ValueError(f"a box {name!r} of no possible size")
        yield Box(name, content, min(stop, end))
        start = stop

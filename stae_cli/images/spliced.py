"""Spliced files: parts of a file, and bytes between them, read as one file without a copy."""

from __future__ import annotations

import io
from bisect import bisect_right
from itertools import accumulate
from typing import BinaryIO

Part = bytes | tuple[int, int]  # bytes, or where a part of the file begins and ends


class Spliced(io.RawIOBase):
    """Reads these parts of a seekable file one after another, as Pillow is to see it.

    Spliced(file, [(0, 33), chunk, (900, 5000)])
    """

    def __init__(self, file: BinaryIO, parts: list[Part]) -> None:
        self._file = file
        self._parts = [part for part in parts if isinstance(part, bytes) or part[0] < part[1]]
        self._ends = list(accumulate(_length(part) for part in self._parts))
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._place, self._ends[-1] if self._ends else 0)[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        pieces = []
        left = (1 << 62) if size is None or size < 0 else size
        while left and (index := bisect_right(self._ends, self._place)) < len(self._parts):
            part = self._parts[index]
            start = self._place - (self._ends[index] - _length(part))
            length = min(left, _length(part) - start)
            if isinstance(part, bytes):
                piece = part[start : start + length]
            else:
                self._file.seek(part[0] + start)
                piece = self._file.read(length)
            if not piece:
                break  # the file became shorter
            pieces.append(piece)
            self._place += len(piece)
            left -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _length(part: Part) -> int:
    return len(part) if isinstance(part, bytes) else part[1] - part[0]

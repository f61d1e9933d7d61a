"""Buffers: memory for pixels that is reused, since new pages take a part of decoding time."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]  # (H, W, 3) RGB
Memory = bytearray | npt.NDArray[np.uint8]  # its length is what counts

KEPT_BYTES = 256 << 20
SMALLEST = 1 << 18  # allocators reuse the pages of smaller ones themselves


class Buffers:
    """Gives out arrays whose memory is reused when the last view of them is gone.

    Thread-safe.

    Args:
        allocate: allocates a number of bytes of expensive memory (pinned), which is kept for small
            pictures too; by default plain memory.
        max_bytes: how much unused memory is kept; the least recently used is freed first.
    """

    def __init__(
        self, allocate: Callable[[int], Memory] | None = None, *, max_bytes: int = KEPT_BYTES
    ) -> None:
        self._allocate, self._limit = allocate or bytearray, max_bytes
        self._smallest = 0 if allocate else SMALLEST
        self._kept = 0
        self._free: OrderedDict[int, list[Memory]] = OrderedDict()
        # Arrays may be freed anywhere, also in these methods, when the lock is held already.
        self._lock = threading.RLock()

    def take(self, height: int, width: int) -> Pixels:
        """An uninitialised array (height, width, 3)."""
        values = 3 * height * width
        if values < self._smallest:
            return np.empty((height, width, 3), np.uint8)
        size = _class_of(values)
        memory = self._reused(size)
        if memory is None:
            memory = self._allocate(size)
        # Not over a numpy array: a view would reference that one, and let `array` go.
        array = np.frombuffer(memory if isinstance(memory, bytearray) else memory.data, np.uint8)
        weakref.finalize(array, self._give_back, memory).atexit = False
        return array[:values].reshape(height, width, 3)  # references `array`, as any view does

    def _reused(self, size: int) -> Memory | None:
        with self._lock:
            if size not in self._free:
                return None
            waiting = self._free[size]
            memory = waiting.pop()
            self._kept -= size
            if waiting:
                self._free.move_to_end(size)
            else:
                del self._free[size]
            return memory

    def _give_back(self, memory: Memory) -> None:
        size = len(memory)
        if size > self._limit:
            return
        with self._lock:
            self._free.setdefault(size, []).append(memory)
            self._free.move_to_end(size)
            self._kept += size
            while self._kept > self._limit:
                self._reused(next(iter(self._free)))


def _class_of(values: int) -> int:
    """Rounds up, so that pictures of about the same size share memory."""
    step = 1 << max(0, values.bit_length() - 4)
    return -(-values // step) * step

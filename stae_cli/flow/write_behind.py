"""Writing behind: files written by threads while the next ones are computed, within a bound."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

Result = TypeVar("Result")

WAITING = 16  # threads that may wait for a disk, which completes many files in the time of one
ITEMS_BEHIND = 256  # per thread; tiny latents take more memory around them than in them


class WriteBehind(Generic[Result]):
    """Runs writes in threads; at most `max_bytes`, and some hundred items, wait for them.

    A context manager: leaving it waits for every write. The first error of a write is raised by
    the next call, or on leaving.

    Args:
        threads: how many compute at once, in a `turn`; more may wait for disks.
        max_bytes: of what waits.
        on_written: called in the caller's thread with each write's result, once it is complete.
    """

    def __init__(
        self, *, threads: int, max_bytes: int, on_written: Callable[[Result], None]
    ) -> None:
        self.turn = threading.Semaphore(threads)  # for writes to hold while they compute
        self._pool = ThreadPoolExecutor(max(threads, WAITING), thread_name_prefix="write")
        self._limit, self._most = max_bytes, threads * ITEMS_BEHIND
        self._on_written = on_written
        self._held = 0
        self._pending: deque[tuple[Future[Result], int]] = deque()

    def submit(self, size: int, write: Callable[[], Result]) -> None:
        """Queues `write`, which holds `size` bytes."""
        while self._pending and (
            self._held + size > self._limit or len(self._pending) >= self._most
        ):
            self._collect()
        self._held += size
        self._pending.append((self._pool.submit(write), size))
        while self._pending and self._pending[0][0].done():
            self._collect()

    def drain(self) -> None:
        """Waits for every write."""
        while self._pending:
            self._collect()

    def __enter__(self) -> WriteBehind[Result]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.drain()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _collect(self) -> None:
        future, size = self._pending.popleft()
        self._held -= size
        self._on_written(future.result())

"""Reading ahead: items read by threads, delivered in order, within a bound of bytes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Reserve = Callable[[int], None]

ITEMS_AHEAD = 64  # per thread; keeps a plan of a million entries out of the pool


class _ByteGate:
    """Grants bytes strictly in the items' order, so that the next one needed is never starved."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._turn = 0
        self._passed: set[int] = set()
        self._closed = False
        self._changed = threading.Condition()

    def acquire(self, turn: int, size: int) -> None:
        """Waits until all earlier items have theirs and `size` fits (or nothing is held)."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._may_go(turn, size))
            self._held += size
            self._advance(turn)

    def finish(self, turn: int) -> None:
        """Lets later items go on where this one asked for nothing."""
        with self._changed:
            if turn >= self._turn:
                self._advance(turn)

    def release(self, size: int) -> None:
        with self._changed:
            self._held -= size
            self._changed.notify_all()

    def close(self) -> None:
        """Lets every waiting thread go; the run is over."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _may_go(self, turn: int, size: int) -> bool:
        return self._turn == turn and (not self._held or self._held + size <= self._limit)

    def _advance(self, turn: int) -> None:
        self._passed.add(turn)
        while self._turn in self._passed:
            self._passed.remove(self._turn)
            self._turn += 1
        self._changed.notify_all()


def read_ahead(
    items: Iterable[Item],
    read: Callable[[Item, Reserve], Result],
    *,
    threads: int,
    max_bytes: int,
) -> Generator[Result, None, None]:
    """Yields `read(item, reserve)` for every item, in order, running ahead in threads.

    `read` calls `reserve(size)` at most once, before it makes something large. What is read and
    not yet yielded never exceeds `max_bytes`, except for one item that is larger by itself.
    An exception of `read` is raised here, in its item's place. Close it when it is left early:
    threads wait for that.
    """
    gate = _ByteGate(max_bytes)

    def run(turn: int, item: Item) -> tuple[Result, int]:
        reserved = 0

        def reserve(size: int) -> None:
            nonlocal reserved
            gate.acquire(turn, size)
            reserved = size

        try:
            return read(item, reserve), reserved
        finally:
            gate.finish(turn)

    pending: deque[Future[tuple[Result, int]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
    try:
        for turn, item in enumerate(items):
            pending.append(pool.submit(run, turn, item))
            if len(pending) > threads * ITEMS_AHEAD:
                yield _delivered(pending, gate)
        while pending:
            yield _delivered(pending, gate)
    finally:
        gate.close()
        pool.shutdown(wait=True, cancel_futures=True)


def _delivered(pending: deque[Future[tuple[Result, int]]], gate: _ByteGate) -> Result:
    result, reserved = pending.popleft().result()
    gate.release(reserved)
    return result

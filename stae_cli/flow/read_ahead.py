"""Reading ahead: items read by threads, delivered in order, within a bound of bytes."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TypeVar

from stae_cli.interrupts import held_interrupts

Item = TypeVar("Item")
Result = TypeVar("Result")
Reserve = Callable[[int], None]

READ_AHEAD_BYTES = 256 << 20  # of pixels, unless the caller says otherwise
FREE_PART = 4  # a quarter of the bytes is granted in any order
ITEMS_AHEAD = 64  # per thread; keeps a plan of a million entries out of the pool


class _ByteGate:
    """Grants bytes in the items' order, so that the next item needed is never starved.

    A part of them is granted in any order, so that threads rarely wait for each other. A semaphore
    is not enough: it grants in order of arrival, so later items could hold all the bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._freely = limit, limit // FREE_PART
        self._held = 0
        self._turn = self._delivered = 0
        self._passed: set[int] = set()
        self._waiting: dict[int, tuple[int, threading.Lock]] = {}
        self._closed = False
        self._lock = threading.Lock()

    def acquire(self, turn: int, size: int) -> None:
        """Waits until `size` fits."""
        with self._lock:
            if self._closed or self._fits(turn, size):
                self._grant(turn, size)
                self._wake()
                return
            signal = threading.Lock()
            signal.acquire()
            self._waiting[turn] = size, signal
        signal.acquire()

    def finish(self, turn: int) -> None:
        """Lets later items go on if this one asked for nothing."""
        with self._lock:
            self._pass(turn)
            self._wake()

    def deliver(self, size: int) -> None:
        """Takes back what the next item in order held."""
        with self._lock:
            self._held -= size
            self._delivered += 1
            self._wake()

    def close(self) -> None:
        """Lets every waiting thread go; the run is over."""
        with self._lock:
            self._closed = True
            while self._waiting:
                _, (_, signal) = self._waiting.popitem()
                signal.release()

    def _fits(self, turn: int, size: int) -> bool:
        """The next item to be delivered never waits: only later ones hold anything then."""
        if turn == self._turn:
            fits = not self._held or self._held + size <= self._limit
            return fits or turn == self._delivered
        return self._held + size <= self._freely

    def _grant(self, turn: int, size: int) -> None:
        self._held += size
        self._pass(turn)

    def _pass(self, turn: int) -> None:
        if turn < self._turn:
            return
        self._passed.add(turn)
        while self._turn in self._passed:
            self._passed.remove(self._turn)
            self._turn += 1

    def _wake(self) -> None:
        """Grants what waiting items ask for, in their order, while it fits."""
        while (waiting := self._waiting.get(self._turn)) and self._fits(self._turn, waiting[0]):
            size, signal = self._waiting.pop(self._turn)
            self._grant(self._turn, size)
            signal.release()


def read_ahead(
    items: Iterable[Item], read: Callable[[Item, Reserve], Result], *, threads: int, max_bytes: int
) -> Generator[Result, None, None]:
    """Yields `read(item, reserve)` for every item, in order, running ahead in threads.

    `read` calls `reserve(size)` at most once, before it allocates something large. What is read and
    not yet yielded never exceeds `max_bytes`, except for an item that is larger by itself, with
    at most a quarter of that beside it.
    An exception of `read` is raised here, in its item's place. A caller that stops early closes the
    iterator: that ends the threads.
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
    gate.deliver(reserved)
    return result


@contextmanager
def scanning(
    items: Iterable[Item], look: Callable[[Item, Reserve], Result], *, workers: int | None
) -> Iterator[Iterator[Result]]:
    """Yields an iterator of `look(item, reserve)` for every item, in order; see `read_ahead`.

    It ends early at a signal, which takes effect when the block is over.
    """
    threads = workers or os.cpu_count() or 1
    with (
        held_interrupts() as interrupts,
        closing(read_ahead(items, look, threads=threads, max_bytes=READ_AHEAD_BYTES)) as results,
    ):
        yield _until(lambda: interrupts.signal is not None, results)


def _until(stop: Callable[[], bool], results: Iterator[Result]) -> Iterator[Result]:
    for result in results:
        if stop():
            return
        yield result

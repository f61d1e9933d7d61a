"""Reading ahead: items read by threads, delivered in order, within a bound of bytes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar, cast

from stae_cli.cores import usable_cores
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


class _Slot(Generic[Item, Result]):
    """One item, and what became of it.

    A `Future` does the same, at a cost that shows with small pictures: each has locks of its own.
    """

    __slots__ = ("_done", "_error", "_item", "_result", "_signal", "_turn", "reserved")

    def __init__(self, turn: int, item: Item) -> None:
        self._turn, self._item = turn, item
        self.reserved, self._done = 0, False
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._signal: threading.Lock | None = None

    def run(self, read: Callable[[Item, Reserve], Result], gate: _ByteGate) -> None:
        """Reads the item, in a thread."""

        def reserve(size: int) -> None:
            gate.acquire(self._turn, size)
            self.reserved = size

        try:
            self._result = read(self._item, reserve)
        except BaseException as error:  # noqa: BLE001 (raised in the item's place)
            self._error = error
        gate.finish(self._turn)
        self._done = True  # before the look at the signal: `take` sets that first, then looks here
        if self._signal is not None:
            self._signal.release()

    def take(self) -> Result:
        """Waits until the item is read; raises what reading it raised."""
        if not self._done:
            signal = threading.Lock()
            signal.acquire()
            self._signal = signal
            if not self._done:
                signal.acquire()
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # its frames reference this slot
        return cast(Result, self._result)


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
    queue: SimpleQueue[_Slot[Item, Result] | None] = SimpleQueue()
    pending: deque[_Slot[Item, Result]] = deque()
    readers: list[threading.Thread] = []
    try:
        for turn, item in enumerate(items):
            if turn < threads:
                name = f"read_{turn}"
                reader = threading.Thread(target=_serve, args=(queue, read, gate), name=name)
                reader.start()
                readers.append(reader)
            pending.append(_Slot(turn, item))
            queue.put(pending[-1])
            if len(pending) > threads * ITEMS_AHEAD:
                yield _delivered(pending, gate)
        while pending:
            yield _delivered(pending, gate)
    finally:
        gate.close()
        with suppress(Empty):
            while True:
                queue.get_nowait()
        for _ in readers:
            queue.put(None)
        for reader in readers:
            reader.join()


def _serve(
    queue: SimpleQueue[_Slot[Item, Result] | None],
    read: Callable[[Item, Reserve], Result],
    gate: _ByteGate,
) -> None:
    """The life of a thread: slots come, until None does."""
    while (slot := queue.get()) is not None:
        slot.run(read, gate)
        del slot  # not held while the next one is awaited: its result may be large


def _delivered(pending: deque[_Slot[Item, Result]], gate: _ByteGate) -> Result:
    slot = pending.popleft()
    result = slot.take()
    gate.deliver(slot.reserved)
    return result


@contextmanager
def scanning(
    items: Iterable[Item], look: Callable[[Item, Reserve], Result], *, workers: int | None
) -> Iterator[Iterator[Result]]:
    """Yields an iterator of `look(item, reserve)` for every item, in order; see `read_ahead`.

    It ends early at a signal, which takes effect when the block is over.
    """
    threads = workers or usable_cores()
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

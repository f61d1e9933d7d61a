"""Parts: how rows are divided, so that each thread takes some through all layers by itself.

torch would divide every product among its threads instead. They then wait for each other thousands
of times a second, in busy loops: as soon as another program takes one core for a moment, all stand
still. A thread that computes a part alone waits for nobody, and its results are the same bytes
whatever the number of threads.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

import torch

LEAST_ROWS = 64  # fewer use a product badly; pieces of whole vectors leave no scalar rest
AHEAD = 2  # parts in the queue for each thread

Given = TypeVar("Given")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Parts:
    """How the rows of a form are divided.

    Attributes:
        rows: of a part.
        threaded: whether threads compute them, one each: on a CPU.
        fewer: whether parts may have fewer, so that all threads have something to do: a row then
            has the same bytes in any number of rows.
        least: rows of such a part, and what they are a multiple of.
    """

    rows: int
    threaded: bool = False
    fewer: bool = False
    least: int = LEAST_ROWS

    def rows_of(self, total: int) -> int:
        """How many rows each part has, of so many in all."""
        if not self.fewer:
            return self.rows
        threads = _threads()
        turns = -(-total // (self.rows * threads))
        even = -(-total // (turns * threads * self.least)) * self.least
        return min(even, self.rows)

    def slices(self, total: int) -> Iterator[slice]:
        """All of the rows in order; the last part has the rest of them."""
        size = self.rows_of(total)
        for first in range(0, total, size):
            yield slice(first, min(first + size, total))

    def each(self, work: Callable[[Given], Result], parts: Iterable[Given]) -> list[Result]:
        """The results of the work on each part, in order, without gradients.

        Parts are drawn while others are computed, a few in advance. An exception of the work is
        raised here, once no thread works on a part any more.
        """
        if not self.threaded or _threads() == 1:
            return [work(part) for part in parts]
        crew = _crew(_threads())
        waiting: deque[Future[Result]] = deque()
        results = []
        try:
            for part in parts:
                if _conductor.ended is not None and _conductor.ended.is_set():
                    raise _EndedError
                if len(waiting) >= AHEAD * crew.threads:
                    results.append(waiting.popleft().result())
                waiting.append(crew.pool.submit(work, part))
            while waiting:
                results.append(waiting.popleft().result())
        finally:
            for future in waiting:
                future.cancel()
            wait(waiting)
        return results

    def conducted(self, work: Callable[[], Result]) -> Result:
        """What `work` returns, which calls `each`, and computes little besides.

        Where `each` uses threads, another thread does that little by itself. In the caller's, torch
        would divide it among threads of its own, which then look out for more in a busy loop and
        take a core from those that compute: a quarter of the time of a small picture.
        """
        threads = _threads()
        if not self.threaded or threads == 1 or _conductor.threads is not None:
            return work()
        ended = threading.Event()
        future = _crew(threads).conductors.submit(_conduct, threads, ended, work)
        try:
            return future.result()
        except BaseException:  # Ctrl-C is the caller's: the conductor would go on
            ended.set()
            wait([future])
            raise


class _EndedError(Exception):
    """The caller was interrupted."""


class _Conductor(threading.local):
    """In a conductor the number of threads that compute for it, and its caller's end; else None."""

    threads: int | None = None
    ended: threading.Event | None = None


_conductor = _Conductor()


def _conduct(threads: int, ended: threading.Event, work: Callable[[], Result]) -> Result:
    _conductor.threads, _conductor.ended = threads, ended
    try:
        return work()
    finally:
        _conductor.threads = _conductor.ended = None


def _threads() -> int:
    """How many threads may compute for this one."""
    return _conductor.threads or torch.get_num_threads()


class _Crew:
    """Threads of which each computes alone, and as many that give them what to do."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        ready = threading.Barrier(2 * threads + 1)
        self.pool = ThreadPoolExecutor(threads, "compute", initializer=_alone)
        self.conductors = ThreadPoolExecutor(threads, "conduct", initializer=_alone)
        for _ in range(threads):
            self.pool.submit(ready.wait)  # so that each of them starts
            self.conductors.submit(ready.wait)
        ready.wait()
        # What a thread sets for itself, torch also takes for threads that are yet to start.
        torch.set_num_threads(threads)


def _alone() -> None:
    """Prepares this thread: torch's functions, and oneDNN's, are to use no other one."""
    torch.set_grad_enabled(False)
    torch.get_num_threads()  # else the first product would set the process's number again
    torch.set_num_threads(1)


_crews: dict[int, _Crew] = {}
_starting = threading.Lock()


def _crew(threads: int) -> _Crew:
    """The process's crew of that many threads; they wait without using a core."""
    with _starting:
        if threads not in _crews:
            _crews[threads] = _Crew(threads)
        return _crews[threads]


def _forget() -> None:
    """A forked process has the pools, but not their threads."""
    global _starting
    _starting = threading.Lock()
    _crews.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

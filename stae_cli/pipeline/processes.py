"""Processes of this machine, one for each of its devices, that do a run's parts between them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from stae_cli.errors import StaeError
from stae_cli.interrupts import HELD
from stae_cli.pipeline.report import Tally
from stae_cli.pipeline.workers import Worker, Workers

if TYPE_CHECKING:
    from multiprocessing import Queue
    from multiprocessing.synchronize import Event

AHEAD = 2  # parts for each process, so that none waits for its next
PATIENCE = 0.2  # seconds between looks at whether to stop


class Processes(Workers):
    """A process for each of `devices`, as `pick_device` names them."""

    def __init__(self, devices: Sequence[str]) -> None:
        self.devices = devices

    @property
    def threads(self) -> int:
        return max(1, (os.cpu_count() or 1) // len(self.devices))

    def tallies(
        self, worker: Worker, parts: Iterable[Any], *, interrupted: Callable[[], bool]
    ) -> Iterator[Tally]:
        count = len(self.devices)
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        devices, stop = context.Queue(), context.Event()
        for device in self.devices:
            devices.put(device)
        with ProcessPoolExecutor(
            count, mp_context=context, initializer=_start, initargs=(worker, devices, stop, count)
        ) as pool:
            try:
                yield from _results(pool, iter(parts), AHEAD * count, interrupted, stop)
            except BrokenProcessPool as error:
                raise StaeError(
                    "a process of the run died: it was killed, or memory was short",
                    "run the same command again: it goes on where it stopped",
                ) from error
            finally:
                stop.set()


def _results(
    pool: ProcessPoolExecutor,
    parts: Iterator[Any],
    ahead: int,
    interrupted: Callable[[], bool],
    stop: Event,
) -> Iterator[Tally]:
    """The tallies as they come; once interrupted, those of what was begun."""
    with _blocked_signals():  # the first call starts the processes
        waiting: set[Future[Tally]] = {pool.submit(_do, part) for part in islice(parts, ahead)}
    while waiting:
        done, waiting = wait(waiting, timeout=PATIENCE, return_when=FIRST_COMPLETED)
        if interrupted():
            stop.set()
        else:
            waiting |= {pool.submit(_do, part) for part in islice(parts, len(done))}
        for future in done:
            yield future.result()


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Keeps Ctrl-C, which all processes of a terminal get, from those that start within."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: Worker | None = None  # of this process, once it is one of several


def _start(worker: Worker, devices: Queue[str], stop: Event, count: int) -> None:
    """The beginning of a new process: its own device, and an end when the first process ends."""
    global _worker
    for number in HELD:  # the first process gets them too, and says when to stop
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    device = devices.get()
    if device == "cpu":
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // count))
    _worker = replace(worker, device=device, stopped=stop.is_set)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(part: Any) -> Tally:
    assert _worker is not None
    return _worker(part)

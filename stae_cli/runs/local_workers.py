"""Local workers: processes of this machine, one for each of its devices, that share a run."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from stae_cli.cores import usable_cores
from stae_cli.errors import StaeError
from stae_cli.interrupts import HELD
from stae_cli.runs.tally import PartTally, Tally
from stae_cli.runs.workers import CodecMaker, Task, Worker, Workers

if TYPE_CHECKING:
    from ctypes import c_byte

PATIENCE = 0.2  # seconds between checks whether to stop
LAST_PATIENCE = 60.0  # seconds that a process has to end what is in flight

_log = logging.getLogger(__name__)


class Processes(Workers):
    """A process for each of `devices`, as `pick_device` names them."""

    def __init__(self, devices: Sequence[str], make_codec: CodecMaker) -> None:
        from stae_cli.codec.device import pick_device

        self.devices = devices
        self.make_codec = make_codec.on({pick_device(device).type for device in devices})

    @property
    def compute_dtype(self) -> str:
        return self.make_codec.dtype_name

    @property
    def threads(self) -> int:
        return max(1, usable_cores() // len(self.devices))

    def run(self, task: Task[Any], parts: Iterable[Any], tally: Tally) -> None:
        worker = Worker(task, self.make_codec)
        stop = multiprocessing.get_context("spawn").RawValue("b", 0)
        children: list[_Child] = []
        try:
            with _blocked_signals():
                for device in self.devices:
                    children.append(_Child(worker, device, stop, len(self.devices)))
            for part in _done(children, iter(parts), stop, lambda: tally.interrupted):
                tally.add(part)
        finally:
            stop.value = 1
            for child in children:
                child.end()


class _Child:
    """One process, and the pipe on which parts go to it and their tallies come back.

    All that processes share is one byte without a lock: none can wait for one that was killed.
    """

    def __init__(self, worker: Worker, device: str, stop: c_byte, count: int) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self.pipe, theirs = context.Pipe()
        worker = replace(worker, device=device)
        self._process = context.Process(target=_serve, args=(theirs, worker, stop, count))
        self._process.start()
        theirs.close()  # so that the pipe ends when the process ends
        _log.info("started process %s on %s", self._process.pid, device)

    def give(self, part: Any) -> None:
        """Sends a part; a dead process is noticed where its tally is awaited."""
        with suppress(OSError):
            self.pipe.send(part)

    def end(self) -> None:
        """Waits for the process for a while, then kills it: its outputs are whole or absent."""
        self.pipe.close()
        self._process.join(LAST_PATIENCE)
        _log.info("process %s ended with %s", self._process.pid, self._process.exitcode)
        self._process.kill()
        self._process.join()


def _done(
    children: Sequence[_Child], parts: Iterator[Any], stop: c_byte, interrupted: Callable[[], bool]
) -> Iterator[PartTally]:
    """The tallies as they come; once interrupted, those of the parts that were begun."""
    busy: dict[Any, _Child] = {}
    for child, part in zip(children, parts, strict=False):
        child.give(part)
        busy[child.pipe] = child
    while busy:
        ready = wait(list(busy), timeout=PATIENCE)
        stop.value = stop.value or interrupted()
        dead = False
        for pipe in ready:
            child = busy.pop(pipe)
            try:
                tally = child.pipe.recv()
            except (EOFError, OSError):
                dead = True
                continue
            for part in parts if not stop.value else ():
                child.give(part)
                busy[pipe] = child
                break
            yield tally
        if dead:
            raise StaeError(
                "a process of the run died: it was killed, or memory was short",
                "run the same command again: it continues where it stopped",
            )


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Keeps Ctrl-C, which a terminal sends to all its processes, from those that start within."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    resource_tracker.ensure_running()  # starting it with the first process would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection, worker: Worker, stop: c_byte, count: int) -> None:
    """The life of a process: parts come and tallies go, until the pipe is closed."""
    for number in HELD:  # the first process gets them too, and says when to stop
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if worker.device == "cpu":
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // count))
    worker = replace(worker, stopped=lambda: bool(stop.value))
    with suppress(EOFError, OSError):
        while True:
            pipe.send(worker(pipe.recv()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

"""Ctrl-C and SIGTERM, delayed until work in progress is safe.

An exception from a signal handler can be raised anywhere, even between taking a lock and the block
that releases it, which leaves other threads waiting forever. So handlers only record the signal,
and main loops check for it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HELD = (signal.SIGINT, signal.SIGTERM)
SHELLS_BASE = 128  # shells report 128 + N for a process that signal N ended


class Interrupts:
    """The signal that has arrived, if any."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def catch(self, number: int, _frame: FrameType | None) -> None:
        """The handler; a second signal ends the process at once."""
        if self.signal is not None:
            os._exit(SHELLS_BASE + number)
        self.signal = number


@contextmanager
def held_interrupts() -> Iterator[Interrupts]:
    """Delays signals inside the block; one that arrived is raised again after it."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():  # only that one gets signals
        yield interrupts
        return
    held = [number for number in HELD if signal.getsignal(number) is not signal.SIG_IGN]
    before = [signal.signal(number, interrupts.catch) for number in held]
    try:
        yield interrupts
    finally:
        for number, handler in zip(held, before, strict=True):
            signal.signal(number, handler)
    if interrupts.signal is not None:
        signal.raise_signal(interrupts.signal)

"""Ctrl-C and SIGTERM, held back until what is in flight is safe.

An exception out of a signal handler can strike anywhere, also between taking a lock and the block
that would release it; the threads that wait for it then wait for ever. So handlers only take note,
and the main loops look whether they have.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HELD = (signal.SIGINT, signal.SIGTERM)
SHELLS_BASE = 128  # exit codes of processes that a signal ended, as shells count them


class Interrupts:
    """Signals that arrived and wait to be let through."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def catch(self, number: int, _frame: FrameType | None) -> None:
        """The handler; a second signal, from someone in a hurry, ends the process at once."""
        if self.signal is not None:
            os._exit(SHELLS_BASE + number)
        self.signal = number


@contextmanager
def held_interrupts() -> Iterator[Interrupts]:
    """Holds signals back within; one that arrived takes its usual course afterwards."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
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

"""Ctrl-C and SIGTERM, held back until the state is saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HELD = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Signals that arrived and wait to be let through."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def catch(self, number: int, _frame: FrameType | None) -> None:
        """The handler; a second signal, from someone in a hurry, is an interrupt at once."""
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


@contextmanager
def held_interrupts() -> Iterator[Interrupts]:
    """Holds signals back within; one that arrived takes its usual course afterwards."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield interrupts
        return
    before = [signal.signal(number, interrupts.catch) for number in HELD]
    try:
        yield interrupts
    finally:
        for number, handler in zip(HELD, before, strict=True):
            signal.signal(number, handler)
    if interrupts.signal is not None:
        signal.raise_signal(interrupts.signal)

"""The training clock: seconds spent on steps, however often the run was stopped in between."""

from __future__ import annotations

from collections import deque
from statistics import median

REMEMBERED = 31
LONGEST = 4.0  # of a usual step; what is longer was no training: the process was stopped


class Clock:
    """Adds up the durations of steps.

    A step that takes more than four times the usual one counts as that much, so that time in
    which the process was stopped or the machine slept is not taken from the run. The first
    steps, which may compile, count in full.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._recent: deque[float] = deque(maxlen=REMEMBERED)

    def add(self, duration: float) -> None:
        """Counts one step of so many seconds."""
        if len(self._recent) >= 3:
            duration = min(duration, LONGEST * median(self._recent))
        self._recent.append(duration)
        self.seconds += duration

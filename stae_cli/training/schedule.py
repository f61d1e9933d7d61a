"""The learning rate over a run: a linear rise, then a cosine to zero."""

from __future__ import annotations

import math


def learning_rate(peak: float, *, step: int, warmup: int, progress: float) -> float:
    """The rate of a step.

    Args:
        peak: the highest rate.
        step: counted from 0.
        warmup: steps of the rise.
        progress: the share of the run that is over, 0 to 1.
    """
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return peak * rise * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

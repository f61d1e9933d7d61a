"""Histograms of figures, as the page draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS, FEW_BINS, FEW = 40, 20, 100  # bars, and bars of fewer pictures
TICKS = 6  # about so many
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)  # between ticks, times a power of ten


@dataclass(frozen=True)
class Tick:
    """A labelled value; `share` is how far along the axis it is, in percent."""

    text: str
    share: float


@dataclass(frozen=True)
class Row:
    """One autoencoder's bars, as percentages of the highest of all rows; `mean` is in bins."""

    name: str
    label: str
    heights: Sequence[float]
    mean: float
    mean_text: str


@dataclass(frozen=True)
class Histogram:
    """Rows of `bins` bars over the same axis."""

    title: str
    unit: str
    bins: int
    rows: Sequence[Row]
    ticks: Sequence[Tick]


def histogram(
    title: str, unit: str, values: Sequence[tuple[str, Sequence[float]]], *, digits: int
) -> Histogram | None:
    """The distribution of a figure over pictures, for one autoencoder or several.

    Args:
        title: the figure's name.
        unit: what its axis says.
        values: of each autoencoder by its name; infinite ones are omitted.
        digits: after the point, of means.

    Returns:
        None if there are no finite values.
    """
    finite = [(name, [one for one in some if math.isfinite(one)]) for name, some in values]
    everything = [one for _, some in finite for one in some]
    if not everything:
        return None
    step = _step(max(everything) - min(everything), least=10.0**-digits)
    low = math.floor(min(everything) / step) * step
    high = max(math.ceil(max(everything) / step) * step, low + step)
    # Rounding may have left the ends just inside of the values.
    finite = [(name, [min(max(one, low), high) for one in some]) for name, some in finite]
    bins = BINS if len(everything) >= FEW * len(finite) else FEW_BINS
    counts = [np.histogram(some, bins, (low, high))[0].tolist() for _, some in finite]
    highest = max(map(max, counts))
    rows = [
        _row(title, name, some, count, (low, high), highest, digits)
        for (name, some), count in zip(finite, counts, strict=True)
        if some
    ]
    number = round((high - low) / step)
    ticks = [Tick(f"{low + step * i:.10g}", round(100 * i / number, 2)) for i in range(number + 1)]
    return Histogram(title, unit, bins, rows, ticks)


def _row(
    title: str,
    name: str,
    values: Sequence[float],
    counts: Sequence[int],
    axis: tuple[float, float],
    highest: int,
    digits: int,
) -> Row:
    low, high = axis
    mean, bins = math.fsum(values) / len(values), len(counts)
    text = f"{mean:.{digits}f}"
    label = (
        f"{title} of {name}: from {min(values):.{digits}f} to {max(values):.{digits}f}, mean {text}"
    )
    heights = [round(100 * count / highest, 1) for count in counts]
    return Row(name, label, heights, round(bins * (mean - low) / (high - low), 2), text)


def _step(span: float, *, least: float) -> float:
    """The distance between ticks: a round number."""
    rough = max(span / TICKS, least)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in STEPS if step * power >= rough * (1 - 1e-9))

"""The chart of `stae stats`: each channel's values, and the correlations of channels."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stae_cli import charts
from stae_cli.latents.moments import Statistics
from stae_cli.verify.stats import Surveyed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 12.0, 5.5  # inches
FEW = 16  # channels: up to so many, each is labelled; of more every fourth
BARS = 200  # points: the thickness of all bars together
DEVIATION = "#7aa5ee"
NOTE = (
    "Left: a channel's mean (black), one standard deviation to either side (blue), and the largest "
    "|z| on both sides, whatever its sign (grey)."
)
CONSTANT = " Channels without deviation have no correlation: grey."


def draw(surveyed: Surveyed, path: Path) -> None:
    """Writes the statistics of latents as a PNG or SVG.

    Raises:
        StaeError: matplotlib is missing, or the file cannot be written.
    """
    charts.write(path, partial(channels, surveyed), hint="give another file to `--plot`")


def channels(surveyed: Surveyed) -> Figure:
    """The figure: values on the left, correlations on the right, with one row for each channel."""
    statistics = surveyed.statistics
    assert statistics is not None  # `survey` raises where there are none
    number = len(statistics.mean)
    scale = "" if statistics.scale is None else f", scale {statistics.scale:.5f}"
    figure = charts.new_figure(
        WIDTH,
        HEIGHT,
        title=f"{number} channels of latents: values and correlations",
        subtitle=f"{surveyed.latents:,} latents of {statistics.positions:,} positions in "
        f"{surveyed.files:,} files, made with {surveyed.weights} ({surveyed.weights_sha256[:12]}); "
        f"shift {statistics.shift:.5f}{scale}, max |z| {statistics.largest:.3f}",
        note=NOTE + CONSTANT * (0 in statistics.std),
    )
    values, correlations = figure.subplots(1, 2, width_ratios=[1, 1.15])
    _draw_values(values, statistics)
    _draw_correlations(correlations, statistics)
    labelled = range(0, number, 1 if number <= FEW else 4)
    values.set_yticks(labelled)
    correlations.set(xticks=labelled, yticks=labelled)
    return figure


def _draw_values(axes: Axes, statistics: Statistics) -> None:
    mean, std = np.array(statistics.mean), np.array(statistics.std)
    largest, rows = np.array(statistics.largest_per_channel), range(len(mean))
    thick = BARS / len(mean)
    axes.axvline(0, color=charts.GRID)
    axes.hlines(rows, -largest, largest, color=charts.GREY, linewidth=1)
    axes.hlines(rows, mean - std, mean + std, color=DEVIATION, linewidth=thick)
    axes.plot(mean, rows, "|", color=charts.INK, markersize=thick, markeredgewidth=1.6)
    axes.set(title="values of each channel", xlabel="z", ylabel="channel")
    axes.set_ylim(len(mean) - 0.5, -0.5)
    axes.grid(axis="x")


def _draw_correlations(axes: Axes, statistics: Statistics) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    cells = np.ma.masked_invalid(np.array(statistics.correlation, dtype=float))
    places = np.arange(len(cells) + 1) - 0.5
    axes.set_facecolor(charts.GREY)  # shows where there is no correlation
    colours = LinearSegmentedColormap.from_list("correlation", charts.DIVERGING)
    mesh = axes.pcolormesh(
        places, places, cells, cmap=colours, vmin=-1, vmax=1, edgecolors="face", linewidth=0.3
    )
    axes.set(title="correlation of channels", xlabel="channel", ylabel="channel", aspect="equal")
    axes.invert_yaxis()
    bar = axes.figure.colorbar(mesh, ax=axes, ticks=[-1, -0.5, 0, 0.5, 1], aspect=30)
    bar.outline.set_visible(False)

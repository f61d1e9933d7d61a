"""The chart of a benchmark: how many images a second each network does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stae_cli import charts
from stae_cli.benchmark.report import OURS, CaseResult, Report, Timing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 11.0  # inches, as the next two
ROW, AROUND_CASE = 0.33, 0.6
THICKNESS = 0.6  # of a bar in its row
VALUES, RATIOS = 8, 62  # points behind the longest bar: where the columns of figures begin
NOTE = (
    "Bars are medians, lines reach from the 10th to the 90th percentile of the rounds. "
    "Each panel has its own scale, from zero."
)


def draw(report: Report, path: Path) -> None:
    """Writes images per second as a PNG or SVG: a row for each case, a bar for each network.

    Raises:
        StaeError: matplotlib is missing, or the file cannot be written.
    """
    charts.write(path, partial(speeds, report), hint="give another file to `--plot`")


def speeds(report: Report) -> Figure:
    """The figure: panels in the order of cases and stages."""
    machine = report.machine
    device = machine.accelerator or f"the CPU, {machine.cpu}, {machine.threads} threads"
    rows = [len(result.networks) for result in report.results]
    figure = charts.new_figure(
        WIDTH,
        ROW * sum(rows) + AROUND_CASE * len(rows),
        title="Images per second",
        subtitle=f"{report.dtype} on {device}, torch {machine.torch}",
        note=NOTE,
    )
    colours = _colours(report.results)
    panels = figure.subplots(len(rows), 2, squeeze=False, height_ratios=rows)
    for result, row in zip(report.results, panels, strict=True):
        for stage, axes in zip(result.stages, row, strict=True):
            axes.set_title(f"{stage}, {result.case}")
            _draw_panel(axes, [each for each in result.timings if each.stage == stage], colours)
    return figure


def _draw_panel(axes: Axes, timings: Sequence[Timing], colours: Mapping[str, str]) -> None:
    names = [timing.network for timing in timings]
    speed = [timing.images_per_second for timing in timings]
    longest = max(one.p90 for one in speed)
    rows, medians = range(len(names)), [one.median for one in speed]
    axes.barh(rows, longest, THICKNESS, color=charts.TRACK)
    axes.barh(rows, medians, THICKNESS, color=[colours[name] for name in names])
    ends = [one.median - one.p10 for one in speed], [one.p90 - one.median for one in speed]
    axes.errorbar(medians, rows, xerr=ends, fmt="none", ecolor=charts.INK, elinewidth=1, capsize=3)
    axes.set(xlim=(0, longest), ylim=(len(names) - 0.5, -0.5), xticks=[])
    axes.set_yticks(rows, names)
    axes.tick_params(axis="y", labelcolor=charts.INK)
    axes.spines[:].set_visible(False)
    for row, timing in enumerate(timings):
        _write_beside(axes, row, VALUES, _figure(timing.images_per_second.median))
        if timing.network != OURS:  # from ratios within rounds, not from the medians shown
            ratio = f"{_figure(timing.slowdown.median)}x the time"
            _write_beside(axes, row, RATIOS, ratio, size=charts.SMALL, color=charts.FAINT)


def _write_beside(axes: Axes, row: int, points: float, text: str, **style: Any) -> None:
    """Writes to the right of a panel; in points, so that the layout knows the width."""
    axes.annotate(
        text,
        (1, row),
        xycoords=axes.get_yaxis_transform(),
        xytext=(points, 0),
        textcoords="offset points",
        va="center_baseline",
        annotation_clip=False,
        **style,
    )


def _colours(results: Sequence[CaseResult]) -> dict[str, str]:
    """The same colour for a network in every panel."""
    others = dict.fromkeys(name for one in results for name in one.networks if name != OURS)
    return {OURS: charts.BLUE} | dict(zip(others, cycle(charts.OTHERS), strict=False))


def _figure(value: float) -> str:
    """Three significant digits, all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"

"""Draws a report as a bar chart: images per second, one row of panels per case."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stae_cli.benchmark.report import OURS, CaseResult, Machine, Report, Timing
from stae_cli.errors import UsageError
from stae_cli.images.chart import BLUE, FAINT, GREY, INK, Canvas

MARGIN, GUTTER = 28, 36
NAMES, BAR, VALUES = 74, 240, 140  # widths of a panel's three columns
PANEL = NAMES + BAR + VALUES
HEADING, CASE_HEADING, STAGE_HEADING = 64, 30, 22
ROW, THICKNESS, BETWEEN_CASES = 24, 14, 14

TRACK = "#f0f2f5"
COLOURS = {OURS: BLUE}
OTHERS = (GREY, "#e0a458", "#7fb5a6", "#c48bb4")
CAPTION = (
    "Bars are medians, lines reach from the 10th to the 90th percentile of the rounds. "
    "Each panel has its own scale."
)


def check_target(path: Path) -> None:
    """Checks that a chart can be written to a path, before anything is measured for it.

    Raises:
        UsageError: it does not end in .png, is a folder, or its folder is missing.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"`{path}` does not end in .png", "name such a file")
    if path.is_dir():
        raise UsageError(f"`{path}` is a folder", "name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"no folder `{path.parent}` for `{path.name}`", "create it first")


def draw(report: Report, path: Path) -> None:
    """Writes a PNG.

    Bars are medians of images per second, lines reach from the 10th to the 90th percentile. Every
    panel has a scale of its own, which starts at zero.

    Raises:
        StaeError: the file cannot be written.
    """
    canvas = Canvas(
        2 * MARGIN + 2 * PANEL + GUTTER, HEADING + sum(map(_height, report.results)) + MARGIN
    )
    canvas.text((MARGIN, 26), "Images per second", 17)
    where = f"{report.dtype} on {_where(report.machine)}, torch {report.machine.torch}"
    canvas.text((MARGIN, 48), where, 11, FAINT)
    colours, top = _colours(report), HEADING
    for result in report.results:
        _case(canvas, result, top, colours)
        top += _height(result)
    canvas.text((MARGIN, top + 8), CAPTION, 10, FAINT)
    canvas.save(path, hint="give another file to `--plot`")


def _case(canvas: Canvas, result: CaseResult, top: int, colours: dict[str, str]) -> None:
    canvas.line([(MARGIN, top + 6), (canvas.width - MARGIN, top + 6)], TRACK)
    canvas.text((MARGIN, top + 22), str(result.case), 13)
    for index, stage in enumerate(_stages(result)):
        left = MARGIN + index * (PANEL + GUTTER)
        canvas.text((left + NAMES, top + CASE_HEADING + 12), stage, 11, FAINT)
        timings = [each for each in result.timings if each.stage == stage]
        _panel(canvas, timings, left, top + CASE_HEADING + STAGE_HEADING, colours)


def _panel(
    canvas: Canvas, timings: Sequence[Timing], left: int, top: int, colours: dict[str, str]
) -> None:
    longest = max(timing.images_per_second.p90 for timing in timings)
    for row, timing in enumerate(timings):
        middle = top + row * ROW + ROW // 2
        canvas.text((left + NAMES - 10, middle), timing.network, 12, INK, "rm")
        _bar(canvas, timing, left + NAMES, middle, BAR / longest, colours[timing.network])
        label = _figure(timing.images_per_second.median)
        canvas.text((left + NAMES + BAR + 10, middle), label, 12)
        if timing.network != OURS:  # from ratios within rounds, not from the medians shown
            ratio = f"{_figure(timing.slowdown.median)}x the time"
            canvas.text((left + PANEL, middle), ratio, 10, FAINT, "rm")


def _bar(canvas: Canvas, timing: Timing, left: int, middle: int, scale: float, colour: str) -> None:
    speed, half = timing.images_per_second, THICKNESS / 2
    canvas.box((left, middle - half), (left + BAR, middle + half), TRACK)
    end = left + max(speed.median * scale, 1)
    canvas.box((left, middle - half), (end, middle + half), colour)
    low, high = left + speed.p10 * scale, left + speed.p90 * scale
    canvas.line([(low, middle), (high, middle)], INK)
    for x in (low, high):
        canvas.line([(x, middle - 3), (x, middle + 3)], INK)


def _height(result: CaseResult) -> int:
    networks = len(result.timings) // len(_stages(result))
    return CASE_HEADING + STAGE_HEADING + networks * ROW + BETWEEN_CASES


def _stages(result: CaseResult) -> list[str]:
    return list(dict.fromkeys(timing.stage for timing in result.timings))


def _colours(report: Report) -> dict[str, str]:
    networks = dict.fromkeys(each.network for one in report.results for each in one.timings)
    others = [name for name in networks if name not in COLOURS]
    return COLOURS | {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}


def _where(machine: Machine) -> str:
    return machine.accelerator or f"the CPU, {machine.cpu}, {machine.threads} threads"


def _figure(value: float) -> str:
    """Three significant digits, all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"

"""Draws a report as a bar chart: images per second, one row of panels per case."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from stae_cli.benchmark.machine import Machine
from stae_cli.benchmark.report import OURS, CaseResult, Report, Timing
from stae_cli.errors import StaeError, UsageError

SCALE = 2  # drawn in points of this many pixels, for sharp text on any screen
MARGIN, GUTTER = 28, 36
NAMES, BAR, VALUES = 74, 240, 140  # widths of a panel's three columns
HEADING, CASE_HEADING, STAGE_HEADING = 64, 30, 22
ROW, THICKNESS, BETWEEN_CASES = 24, 14, 14

PAPER, INK, FAINT, TRACK = "#ffffff", "#1c2430", "#667085", "#f0f2f5"
COLOURS = {OURS: "#2f6fde"}
CAPTION = (
    "Bars are medians, lines reach from the 10th to the 90th percentile of the rounds. "
    "Each panel has its own scale."
)
OTHERS = ("#9aa7b8", "#e0a458", "#7fb5a6", "#c48bb4")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def check_target(path: Path) -> None:
    """Checks that a chart can be written there, before anything is measured for it.

    Raises:
        UsageError: no PNG by its name, a folder, or its folder is missing.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"`{path}` does not end in .png", "name such a file")
    if path.is_dir():
        raise UsageError(f"`{path}` is a folder", "name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"no folder `{path.parent}` for `{path.name}`", "make it first")


def draw(report: Report, path: Path) -> None:
    """Writes a PNG, sharp enough for screens of double density.

    Bars are medians of images per second, lines reach from the 10th to the 90th percentile. Every
    panel has a scale of its own, which starts at zero.

    Raises:
        StaeError: the file cannot be written.
    """
    chart = _Chart(report)
    try:
        chart.image.save(path, format="PNG")
    except OSError as error:
        raise StaeError(
            f"cannot write `{path}`: {error}", "give another file to `--plot`"
        ) from error


class _Chart:
    """An image under way; places are in points from its upper left corner."""

    def __init__(self, report: Report) -> None:
        panel = NAMES + BAR + VALUES
        width = 2 * MARGIN + 2 * panel + GUTTER
        height = HEADING + sum(map(_height, report.results)) + MARGIN
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
        self._draw = ImageDraw.Draw(self.image)
        self._colours = _colours(report)
        self._text((MARGIN, 26), "Images per second", 17, INK)
        self._text((MARGIN, 48), _subtitle(report), 11, FAINT)
        top = HEADING
        for result in report.results:
            self._case(result, top, panel)
            top += _height(result)
        self._text((MARGIN, top + 8), CAPTION, 10, FAINT)

    def _case(self, result: CaseResult, top: int, panel: int) -> None:
        self._line((MARGIN, top + 6), (self.image.width // SCALE - MARGIN, top + 6), TRACK, 1)
        self._text((MARGIN, top + 22), str(result.case), 13, INK)
        for index, stage in enumerate(_stages(result)):
            left = MARGIN + index * (panel + GUTTER)
            self._text((left + NAMES, top + CASE_HEADING + 12), stage, 11, FAINT)
            timings = [each for each in result.timings if each.stage == stage]
            self._panel(timings, left, top + CASE_HEADING + STAGE_HEADING)

    def _panel(self, timings: Sequence[Timing], left: int, top: int) -> None:
        longest = max(timing.images_per_second.p90 for timing in timings)
        for row, timing in enumerate(timings):
            middle = top + row * ROW + ROW // 2
            self._text((left + NAMES - 10, middle), timing.network, 12, INK, "rm")
            self._bar(timing, left + NAMES, middle, BAR / longest)
            label = _figure(timing.images_per_second.median)
            self._text((left + NAMES + BAR + 10, middle), label, 12, INK)
            if timing.network != OURS:  # from ratios within rounds, not from the medians shown
                ratio = f"{_figure(timing.slowdown.median)}x the time"
                self._text((left + NAMES + BAR + VALUES, middle), ratio, 10, FAINT, "rm")

    def _bar(self, timing: Timing, left: int, middle: int, scale: float) -> None:
        speed, half = timing.images_per_second, THICKNESS / 2
        self._box((left, middle - half), (left + BAR, middle + half), TRACK)
        end = left + max(speed.median * scale, 1)
        self._box((left, middle - half), (end, middle + half), self._colours[timing.network])
        low, high = left + speed.p10 * scale, left + speed.p90 * scale
        self._line((low, middle), (high, middle), INK, 1)
        for x in (low, high):
            self._line((x, middle - 3), (x, middle + 3), INK, 1)

    def _text(
        self, at: tuple[float, float], text: str, size: int, colour: str, anchor: str = "lm"
    ) -> None:
        place = (at[0] * SCALE, at[1] * SCALE)
        self._draw.text(place, text, colour, font=_font(size), anchor=anchor)

    def _box(self, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
        self._draw.rectangle(_scaled(start, end), fill=colour)

    def _line(
        self, start: tuple[float, float], end: tuple[float, float], colour: str, width: int
    ) -> None:
        self._draw.line(_scaled(start, end), fill=colour, width=width * SCALE)


def _height(result: CaseResult) -> int:
    networks = len(result.timings) // len(_stages(result))
    return CASE_HEADING + STAGE_HEADING + networks * ROW + BETWEEN_CASES


def _stages(result: CaseResult) -> list[str]:
    return list(dict.fromkeys(timing.stage for timing in result.timings))


def _colours(report: Report) -> dict[str, str]:
    networks = dict.fromkeys(each.network for one in report.results for each in one.timings)
    others = [name for name in networks if name not in COLOURS]
    return COLOURS | {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}


def _subtitle(report: Report) -> str:
    return f"{report.dtype} on {_where(report.machine)}, torch {report.machine.torch}"


def _where(machine: Machine) -> str:
    return machine.accelerator or f"the CPU, {machine.cpu}, {machine.threads} threads"


def _figure(value: float) -> str:
    """Three significant digits, all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _font(size: int) -> Font:
    return ImageFont.load_default(size * SCALE)


def _scaled(start: tuple[float, float], end: tuple[float, float]) -> list[float]:
    return [SCALE * each for each in (*start, *end)]

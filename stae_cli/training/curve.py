"""The curve of a run as a picture: the loss, and the PSNR of the validation photos."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from stae_cli.errors import StaeError
from stae_cli.metrics import psnr

SCALE = 2  # drawn in points of this many pixels, for sharp text on any screen
WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 60, 24, 56, 44
PAPER, INK, FAINT, GRID = "#ffffff", "#1c2430", "#667085", "#e4e7ec"
TRAINED, VALIDATED = "#9aa7b8", "#2f6fde"

Point = tuple[float, float]


def draw_curve(log: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes a PNG of PSNR over steps: of the training crops (from their loss) and validation.

    Points at infinity, where pictures are reproduced exactly, are left out.

    Raises:
        StaeError: the file cannot be written.
    """
    trained = [(float(line["step"]), psnr(line["loss"])) for line in log if "loss" in line]
    validated = [(float(line["step"]), _level(line["psnr"])) for line in log if "psnr" in line]
    try:
        _Chart(trained, validated).image.save(path, format="PNG")
    except OSError as error:
        raise StaeError(f"cannot write `{path}`: {error.strerror or error}", "make room") from error


def _level(logged: float | None) -> float:
    return math.inf if logged is None else logged


class _Chart:
    """An image under way; places are in points from its upper left corner."""

    def __init__(self, trained: Sequence[Point], validated: Sequence[Point]) -> None:
        self.image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), PAPER)
        self._draw = ImageDraw.Draw(self.image)
        points = [*trained, *validated]
        self._steps = max((step for step, _ in points), default=0.0) or 1.0
        levels = [level for _, level in points if math.isfinite(level)] or [0.0]
        self._low, self._high = math.floor(min(levels)), math.ceil(max(levels) + 0.01)
        self._grid()
        self._curve(trained, TRAINED, 1)
        self._curve(validated, VALIDATED, 2)
        self._text((LEFT, 22), "PSNR in dB over steps", 15, INK)
        self._text((LEFT, 42), "training crops", 11, TRAINED)
        if validated:
            last = f"validation photos, {validated[-1][1]:.2f} dB at the end"
            self._text((LEFT + 110, 42), last, 11, VALIDATED)

    def _grid(self) -> None:
        every = max(1, (self._high - self._low) // 8)
        for level in range(self._low, self._high + 1, every):
            start, end = self._place((0, level)), self._place((self._steps, level))
            self._draw.line([start, end], fill=GRID, width=SCALE)
            self._text((LEFT - 10, start[1] / SCALE), str(level), 11, FAINT, "rm")
        for part in range(5):
            step = self._steps * part / 4
            x = self._place((step, self._low))[0] / SCALE
            self._text((x, HEIGHT - BOTTOM + 16), f"{step:,.0f}", 11, FAINT, "mm")

    def _curve(self, points: Sequence[Point], colour: str, width: int) -> None:
        places = [self._place(point) for point in points if math.isfinite(point[1])]
        if len(places) > 1:
            self._draw.line(places, fill=colour, width=width * SCALE, joint="curve")

    def _place(self, point: Point) -> Point:
        step, level = point
        across = step / self._steps * (WIDTH - LEFT - RIGHT)
        up = (level - self._low) / (self._high - self._low) * (HEIGHT - TOP - BOTTOM)
        return ((LEFT + across) * SCALE, (HEIGHT - BOTTOM - up) * SCALE)

    def _text(self, at: Point, text: str, size: int, colour: str, anchor: str = "lm") -> None:
        font = ImageFont.load_default(size * SCALE)
        self._draw.text((at[0] * SCALE, at[1] * SCALE), text, colour, font=font, anchor=anchor)

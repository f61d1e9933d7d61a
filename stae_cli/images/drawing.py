"""Drawing with Pillow: a canvas for charts, and pictures side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stae_cli.errors import StaeError
from stae_cli.images.buffers import Pixels

SCALE = 2  # pixels in a point of a chart
MARK = 2.5  # points: the radius of a marked value
PAPER, INK, FAINT, GRID = "#ffffff", "#1c2430", "#667085", "#e4e7ec"
BLUE, GREY = "#2f6fde", "#9aa7b8"

WIDEST_PANEL = 1024  # pixels
NARROWEST_PANEL = 256  # smaller pictures are enlarged by integers, so that labels fit
GAIN = 8  # of the difference that a comparison shows
LABELS = ("original", "reconstruction", f"difference x {GAIN}, grey = equal")
LARGEST_LABEL, SMALLEST_LABEL = 22, 8  # sizes of the font
MARGIN = 8  # pixels around panels
SHEET, LABEL = (250, 250, 250), (30, 30, 30)

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """The values from one end of an axis to the other, and where it is labelled."""

    low: float
    high: float
    ticks: Sequence[float]
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """How far along the axis a value is, 0 to 1."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low) if high > low else 0.5


@dataclass(frozen=True)
class Line:
    """A line through points (x, y), `width` points wide."""

    points: Sequence[Point]
    colour: str
    width: int = 1
    marked: bool = False


@dataclass(frozen=True)
class Frame:
    """The rectangle between two axes, in points."""

    left: float
    top: float
    right: float
    bottom: float

    def at(self, x: float, y: float) -> Point:
        """Where shares of both axes are."""
        width, height = self.right - self.left, self.bottom - self.top
        return self.left + x * width, self.bottom - y * height


class Canvas:
    """An image being drawn; positions are in points from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.image = Image.new("RGB", (round(width * SCALE), round(height * SCALE)), PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def text(self, at: Point, text: str, size: int, colour: str = INK, anchor: str = "lm") -> None:
        """One line of text; `anchor` is Pillow's, by default the middle of its left side."""
        font = ImageFont.load_default(size * SCALE)
        self._draw.text(_pixels(at), text, colour, font=font, anchor=anchor)

    def box(self, start: Point, end: Point, colour: str) -> None:
        """A filled rectangle."""
        self._draw.rectangle([_pixels(start), _pixels(end)], fill=colour)

    def line(self, points: Sequence[Point], colour: str, width: int = 1) -> None:
        """A line through two points or more."""
        places = [_pixels(point) for point in points]
        self._draw.line(places, fill=colour, width=width * SCALE, joint="curve")

    def plot(self, frame: Frame, x: Axis, y: Axis, lines: Sequence[Line]) -> None:
        """A grid with labelled axes and lines on it; points at infinity are omitted."""
        for tick in y.ticks:
            start, end = frame.at(0, y.share(tick)), frame.at(1, y.share(tick))
            self.line([start, end], GRID)
            self.text((start[0] - 10, start[1]), _label(tick), 11, FAINT, "rm")
        for tick in x.ticks:
            across, _ = frame.at(x.share(tick), 0)
            self.text((across, frame.bottom + 16), _label(tick), 11, FAINT, "mm")
        for line in lines:
            places = [
                frame.at(x.share(across), y.share(up))
                for across, up in line.points
                if math.isfinite(up)
            ]
            if len(places) > 1:
                self.line(places, line.colour, line.width)
            for place in places if line.marked else ():
                self._draw.circle(_pixels(place), MARK * SCALE, fill=line.colour)

    def save(self, path: Path, *, hint: str) -> None:
        """Writes a PNG.

        Raises:
            StaeError: the file cannot be written; `hint` says what to do then.
        """
        try:
            self.image.save(path, format="PNG")
        except OSError as error:
            raise StaeError(f"cannot write `{path}`: {error.strerror or error}", hint) from error


def _pixels(point: Point) -> Point:
    return point[0] * SCALE, point[1] * SCALE


def _label(value: float) -> str:
    """Thousands are separated in large numbers only."""
    if value != round(value):
        return f"{value:g}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.0f}"


def comparison(original: Pixels, reconstruction: Pixels) -> Pixels:
    """Three labelled panels in a row.

    The third is 128 + 8 (reconstruction - original), clipped: mid-grey where they are equal.

    Args:
        original: (H, W, 3) uint8.
        reconstruction: (H, W, 3) uint8 of the same size.
    """
    difference = (reconstruction.astype(np.int16) - original) * GAIN + 128
    shown = (original, reconstruction, difference.clip(0, 255).astype(np.uint8))
    panels = [_fitted(Image.fromarray(pixels)) for pixels in shown]
    width, height = panels[0].size
    font = _font(width)
    strip = 2 * MARGIN + sum(font.getmetrics())
    sheet = Image.new("RGB", (3 * width + 4 * MARGIN, strip + height + MARGIN), SHEET)
    draw = ImageDraw.Draw(sheet)
    for index, (panel, label) in enumerate(zip(panels, LABELS, strict=True)):
        left = MARGIN + index * (width + MARGIN)
        draw.text((left, MARGIN), label, fill=LABEL, font=font)
        sheet.paste(panel, (left, strip))
    return np.asarray(sheet)


def _fitted(panel: Image.Image) -> Image.Image:
    width, height = panel.size
    if width > WIDEST_PANEL:
        size = WIDEST_PANEL, max(1, round(height * WIDEST_PANEL / width))
        return panel.resize(size, Image.Resampling.BOX)
    factor = -(-NARROWEST_PANEL // width)
    return panel.resize((width * factor, height * factor), Image.Resampling.NEAREST)


def _font(width: int) -> ImageFont.FreeTypeFont:
    """The built-in font, in the largest size whose longest label fits over a panel."""
    longest = max(LABELS, key=len)
    size = LARGEST_LABEL
    while size > SMALLEST_LABEL and _loaded(size).getlength(longest) > width:
        size -= 1
    return _loaded(size)


def _loaded(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow is built with FreeType everywhere
    return font

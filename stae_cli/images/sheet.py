"""Sheets: many pictures side by side in one, in cells of equal size, with labels or without."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stae_cli.images.buffers import Pixels
from stae_cli.images.pillow import DAMAGED

MOST_PIXELS = 64_000_000  # of a sheet
NO_CHARACTER = "\uffff"  # drawn as every character that a font lacks
ELLIPSIS = "\u2026"

Size = tuple[int, int]  # width and height


@dataclass(frozen=True)
class Style:
    """How a sheet looks.

    `gap` pixels of the colour `paper` are around each picture. Pictures with a side over `longest`
    are shrunk; 0 shrinks none. A cell is at least `narrowest` wide. Labels are in a font of size
    `letters`; 0 means none.
    """

    gap: int
    paper: str
    longest: int = 0
    narrowest: int = 1
    letters: int = 0


GRID_STYLE = Style(gap=2, paper="#000000")
CONTACT_STYLE = Style(gap=16, paper="#fafafa", longest=384, narrowest=160, letters=15)
INK = "#1c2430"  # of labels
LABEL_GAP = 6  # pixels between a picture and its label


@dataclass(frozen=True)
class _Layout:
    """Cells for pictures up to `cell`, as square as it goes; the last row may be shorter.

    `strip` is the height of the labels beneath.
    """

    count: int
    cell: Size
    gap: int
    strip: int

    @property
    def columns(self) -> int:
        return max(1, math.ceil(math.sqrt(self.count)))

    @property
    def sides(self) -> Size:
        """Width and height of the whole."""
        rows = math.ceil(self.count / self.columns)
        across, down = self._steps
        return self.gap + self.columns * across, self.gap + rows * down

    def corner(self, number: int) -> Size:
        """Where the cell of a picture begins, from the left and from the top."""
        row, column = divmod(number, self.columns)
        across, down = self._steps
        return self.gap + column * across, self.gap + row * down

    @property
    def _steps(self) -> Size:
        return self.cell[0] + self.gap, self.cell[1] + self.strip + self.gap


@dataclass(frozen=True)
class Sheet:
    """The first pictures that fit into a sheet together, by their files and their drawn sizes."""

    paths: Sequence[Path]
    sizes: Sequence[Size]
    style: Style

    def draw(self, labels: Sequence[str] = ()) -> Pixels:
        """The sheet, (H, W, 3) uint8: pictures in the middle of their cells, or above their labels.

        Args:
            labels: of the pictures, if the style has any; what does not fit is cut out of their
                middle.
        """
        layout = _layout(self.sizes, self.style)
        sheet = Image.new("RGB", layout.sides, self.style.paper)
        for number, (path, size) in enumerate(zip(self.paths, self.sizes, strict=True)):
            left, top = layout.corner(number)
            across, down = (layout.cell[0] - size[0]) // 2, layout.cell[1] - size[1]
            down = down if self.style.letters else down // 2
            with Image.open(path) as image:
                drawn = image.convert("RGB")
            if drawn.size != size:
                drawn = drawn.resize(size, Image.Resampling.BOX)
            sheet.paste(drawn, (left + across, top + down))
        if self.style.letters:
            _write_labels(sheet, layout, labels, _font(self.style.letters))
        return np.asarray(sheet)


def fitting(paths: Sequence[Path], style: Style, *, longest_side: int) -> Sheet:
    """The first pictures that fit into one sheet of `MOST_PIXELS`; there may be none.

    Args:
        paths: of the pictures, in their order; one that cannot be read ends them.
        style: of the sheet.
        longest_side: of the sheet, in pixels.
    """
    sizes: list[Size] = []
    widest = highest = 0
    for path in paths:
        try:
            with Image.open(path) as image:
                size = _drawn_size(image.size, style)
        except DAMAGED:  # too large, or replaced meanwhile
            break
        widest, highest = max(widest, size[0]), max(highest, size[1])
        sides = _layout([(widest, highest)], style, count=len(sizes) + 1).sides
        if math.prod(sides) > MOST_PIXELS or max(sides) > longest_side:
            break
        sizes.append(size)
    return Sheet(paths[: len(sizes)], sizes, style)


def _drawn_size(size: Size, style: Style) -> Size:
    if not style.longest or max(size) <= style.longest:
        return size
    width, height = (max(1, round(side * style.longest / max(size))) for side in size)
    return width, height


def _layout(sizes: Sequence[Size], style: Style, count: int | None = None) -> _Layout:
    cell = max(style.narrowest, *(w for w, _ in sizes)), max(h for _, h in sizes)
    strip = LABEL_GAP + sum(_font(style.letters).getmetrics()) if style.letters else 0
    return _Layout(len(sizes) if count is None else count, cell, style.gap, strip)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow is built with FreeType everywhere
    return font


def _write_labels(
    sheet: Image.Image, layout: _Layout, labels: Sequence[str], font: ImageFont.FreeTypeFont
) -> None:
    draw = ImageDraw.Draw(sheet)
    alphabet = _Alphabet(font)
    for number, label in enumerate(labels):
        left, top = layout.corner(number)
        text = _shortened(alphabet.spelled(label), layout.cell[0], font)
        at = left + layout.cell[0] // 2, top + layout.cell[1] + LABEL_GAP
        draw.text(at, text, INK, font=font, anchor="ma")


class _Alphabet:
    """The characters that a font has."""

    def __init__(self, font: ImageFont.FreeTypeFont) -> None:
        self._font = font
        self._absent = self._image(NO_CHARACTER)
        self._known: dict[str, str] = {}

    def spelled(self, text: str) -> list[str]:
        """How each character of a text is drawn: itself, without its accent, or as an escape."""
        whole = unicodedata.normalize("NFC", text)
        return [self._known.setdefault(c, self._spelling(c)) for c in whole]

    def _spelling(self, character: str) -> str:
        base = unicodedata.normalize("NFKD", character)[0]
        for shown in (character, base):
            if shown.isprintable() and self._image(shown) != self._absent:
                return shown
        return character.encode("unicode_escape").decode()

    def _image(self, character: str) -> tuple[Size, bytes]:
        mask = self._font.getmask(character)
        return mask.size, bytes(mask)


def _shortened(parts: Sequence[str], width: int, font: ImageFont.FreeTypeFont) -> str:
    """As many parts of a text from both ends as fit into a width in pixels."""
    if font.getlength(whole := "".join(parts)) <= width:
        return whole
    fits, too_many = 0, len(parts)
    while too_many - fits > 1:
        kept = (fits + too_many) // 2
        is_fitting = font.getlength(_cut(parts, kept)) <= width
        fits, too_many = (kept, too_many) if is_fitting else (fits, kept)
    return _cut(parts, fits)


def _cut(parts: Sequence[str], kept: int) -> str:
    """The first half of `kept` parts, and the last."""
    tail = kept // 2
    return "".join([*parts[: kept - tail], ELLIPSIS, *parts[len(parts) - tail :]])

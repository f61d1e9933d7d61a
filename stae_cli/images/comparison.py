"""Originals beside reconstructions: labelled panels, drawn with Pillow."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stae_cli.images.buffers import Pixels

WIDEST_PANEL = 1024  # pixels
TALLEST_ENLARGED = 4096  # pixels
NARROWEST_PANEL = 256  # smaller pictures are enlarged by integers
GAIN = 8  # of the difference that a comparison shows
LABELS = ("original", "reconstruction", f"difference x {GAIN}, grey = equal")
LARGEST_LABEL, SMALLEST_LABEL = 22, 8  # sizes of the font
MARGIN = 8  # pixels around panels
SHEET, LABEL = (250, 250, 250), (30, 30, 30)


def comparison(original: Pixels, reconstruction: Pixels) -> Pixels:
    """Three labelled panels in a row.

    The third is 128 + 8 (reconstruction - original), clipped: mid-grey where they are equal.

    Args:
        original: (H, W, 3) uint8.
        reconstruction: (H, W, 3) uint8 of the same size.
    """
    difference = (reconstruction.astype(np.int16) - original) * GAIN + 128
    shown = (original, reconstruction, difference.clip(0, 255).astype(np.uint8))
    width, height = original.shape[1], original.shape[0]
    sides = _panel_size(width, height)
    cell = max(sides[0], NARROWEST_PANEL)  # in which labels fit
    font = _font(cell)
    strip = 2 * MARGIN + sum(font.getmetrics())
    sheet = Image.new("RGB", (3 * cell + 4 * MARGIN, strip + sides[1] + MARGIN), SHEET)
    draw = ImageDraw.Draw(sheet)
    filter_ = Image.Resampling.BOX if sides[0] < width else Image.Resampling.NEAREST
    for index, (pixels, label) in enumerate(zip(shown, LABELS, strict=True)):
        left = MARGIN + index * (cell + MARGIN)
        draw.text((left, MARGIN), label, fill=LABEL, font=font)
        sheet.paste(Image.fromarray(pixels).resize(sides, filter_), (left, strip))
    return np.asarray(sheet)


def panels_size(width: int, height: int) -> int:
    """How many bytes the comparison of pictures of some size takes, about."""
    across, down = _panel_size(width, height)
    return 9 * max(across, NARROWEST_PANEL) * down


def _panel_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of a panel."""
    if width > WIDEST_PANEL:
        return WIDEST_PANEL, max(1, round(height * WIDEST_PANEL / width))
    factor = max(1, min(-(-NARROWEST_PANEL // width), TALLEST_ENLARGED // height))
    return width * factor, height * factor


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

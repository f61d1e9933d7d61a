"""Originals beside reconstructions: labelled panels, drawn with Pillow."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stae_cli.images.buffers import Pixels

WIDEST_PANEL = 1024  # pixels
NARROWEST_PANEL = 256  # smaller pictures are enlarged by integers, so that labels fit
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

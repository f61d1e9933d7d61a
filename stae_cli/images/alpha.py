"""Premultiplied alpha: colours that were multiplied by it, made straight."""

from __future__ import annotations

import numpy as np
from PIL import Image


def straight(image: Image.Image) -> Image.Image:
    """An LA or RGBA image of which the colours were multiplied by alpha."""
    pixels = np.asarray(image)
    colours, alpha = pixels[..., :-1].astype(np.uint16), pixels[..., -1:]
    colours = (colours * 255 + alpha // 2) // np.maximum(alpha, 1)
    return Image.fromarray(np.dstack([np.minimum(colours, 255).astype(np.uint8), alpha]))

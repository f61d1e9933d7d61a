"""Small pictures for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples" / "photos"


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8: smooth colours with some noise, as photos have."""
    generator = np.random.default_rng([seed, width, height])
    coarse = generator.integers(0, 256, (2, 3, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    grain = generator.integers(-12, 13, smooth.shape)
    return np.clip(smooth.astype(int) + grain, 0, 255).astype(np.uint8)


def write_photos(folder: Path, count: int = 9) -> Path:
    """Writes `count` PNGs, nearly all of different sizes; the last two in a subfolder."""
    (folder / "sub").mkdir(parents=True)
    for number in range(count):
        place = folder / "sub" if number >= count - 2 else folder
        pixels = noise(17 + number % 23, 40 - number % 19, seed=number)
        Image.fromarray(pixels).save(place / f"p{number}.png")
    return folder

"""Sample reconstructions: a sheet of pictures beside what the trained network makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stae_cli.errors import StaeError
from stae_cli.images.buffers import Pixels
from stae_cli.images.comparison import comparison
from stae_cli.network.stupid_ae import StupidAE
from stae_cli.training.photos import PhotoSet
from stae_cli.training.validation import reconstructions

SIDE = 512
PAPER = (250, 250, 250)


def sample_crops(photos: PhotoSet) -> list[Pixels]:
    """A few photos of each source."""
    return [photo for source in photos.sources for photo in source[:3]]


def draw_samples(
    model: StupidAE, pictures: Sequence[Pixels], path: Path, *, device: torch.device
) -> None:
    """Writes a PNG with a row for each picture: original, reconstruction, difference.

    Raises:
        StaeError: the file cannot be written.
    """
    patch = model.architecture.downsample
    shown = [_centre(picture, patch=patch) for picture in pictures]
    rows = [
        Image.fromarray(comparison(*pair))
        for pair in zip(shown, reconstructions(model, shown, device), strict=True)
    ]
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), PAPER)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    try:
        sheet.save(path, format="PNG")
    except OSError as error:
        raise StaeError(f"cannot write `{path}`: {error.strerror or error}", "make room") from error


def _centre(picture: Pixels, *, patch: int) -> Pixels:
    """512 pixels on a side at most, and multiples of the patch."""
    height, width = (min(side, SIDE) // patch * patch for side in picture.shape[:2])
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return np.ascontiguousarray(picture[top : top + height, left : left + width])

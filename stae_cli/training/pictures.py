"""The pictures of a run: its curve, and sample reconstructions beside their originals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from stae_cli.errors import StaeError
from stae_cli.images.buffers import Pixels
from stae_cli.images.drawing import BLUE, GREY, Axis, Canvas, Frame, Line, comparison
from stae_cli.metrics import psnr
from stae_cli.network.stupid_ae import StupidAE
from stae_cli.training.evaluation import centre, reconstructions
from stae_cli.training.photos import PhotoSet

WIDTH, HEIGHT = 760, 380  # points
FRAME = Frame(60, 56, WIDTH - 24, HEIGHT - 44)
SIDE = 512  # pixels
PAPER = (250, 250, 250)
FREE_SPACE = "free some disk space"


def draw_curve(log: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes a PNG of PSNR over steps: of the training crops (from their loss) and validation.

    Points at infinity, where pictures are reproduced exactly, are omitted.

    Raises:
        StaeError: the file cannot be written.
    """
    trained = [(line["step"], psnr(line["loss"])) for line in log if "loss" in line]
    # The log has null for infinity.
    validated = [
        (line["step"], math.inf if line["psnr"] is None else line["psnr"])
        for line in log
        if "psnr" in line
    ]
    steps = max((step for step, _ in [*trained, *validated]), default=0) or 1
    values = [value for _, value in [*trained, *validated] if math.isfinite(value)] or [0.0]
    low, high = math.floor(min(values)), math.ceil(max(values) + 0.01)
    canvas = Canvas(WIDTH, HEIGHT)
    canvas.text((FRAME.left, 22), "PSNR in dB over steps", 15)
    canvas.text((FRAME.left, 42), "training crops", 11, GREY)
    if validated:
        last = f"validation photos, {validated[-1][1]:.2f} dB at the end"
        canvas.text((FRAME.left + 110, 42), last, 11, BLUE)
    canvas.plot(
        FRAME,
        Axis(0, steps, [round(steps * part / 4) for part in range(5)]),
        Axis(low, high, range(low, high + 1, max(1, (high - low) // 8))),
        [Line(trained, GREY), Line(validated, BLUE, width=2)],
    )
    canvas.save(path, hint=FREE_SPACE)


def sample_photos(photos: PhotoSet) -> list[Pixels]:
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
    shown = [np.ascontiguousarray(centre(p, patch=patch, longest=SIDE)) for p in pictures]
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
        raise StaeError(f"cannot write `{path}`: {error.strerror or error}", FREE_SPACE) from error

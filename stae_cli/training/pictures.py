"""The pictures of a run: its curve, and sample reconstructions beside their originals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from stae_cli import charts
from stae_cli.errors import StaeError
from stae_cli.images.buffers import Pixels
from stae_cli.images.comparison import comparison
from stae_cli.metrics import psnr
from stae_cli.network.stupid_ae import StupidAE
from stae_cli.training.evaluation import centre, reconstructions
from stae_cli.training.photos import PhotoSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVE = (10.0, 4.2)  # inches
SIDE = 512  # pixels
PAPER = (250, 250, 250)
FREE_SPACE = "free some disk space"


def draw_curve(log: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes a PNG of PSNR over steps: of the training crops (from their loss) and validation.

    Points at infinity, where pictures are reproduced exactly, are omitted.

    Raises:
        StaeError: matplotlib is missing, or the file cannot be written.
    """
    charts.write(path, partial(curve, log), hint=FREE_SPACE)


def curve(log: Sequence[Mapping[str, Any]]) -> Figure:
    """The figure: training crops in grey, validation photos in blue."""
    from matplotlib.ticker import MaxNLocator

    trained = [(line["step"], psnr(line["loss"])) for line in log if "loss" in line]
    # The log has null for infinity.
    validated = [
        (line["step"], math.inf if line["psnr"] is None else line["psnr"])
        for line in log
        if "psnr" in line
    ]
    title = "PSNR in dB over steps"
    last = f"Validation photos: {validated[-1][1]:.2f} dB at the end." if validated else ""
    figure = charts.new_figure(*CURVE, title=title, subtitle=last)
    axes = figure.subplots()
    for name, points, colour, width in (
        ("training crops", trained, charts.GREY, 1.2),
        ("validation photos", validated, charts.BLUE, 2.4),
    ):
        shown = [point for point in points if math.isfinite(point[1])]
        if shown:
            (line,) = axes.plot(*zip(*shown, strict=True), color=colour, lw=width, label=name)
            line.set(marker="o" if len(shown) == 1 else "", clip_on=False)  # one point is no line
    if axes.lines:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)
    axes.set_xlim(0, max((step for step, _ in [*trained, *validated]), default=0) or 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("steps")
    axes.grid(axis="y")
    return figure


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

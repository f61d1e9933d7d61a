"""The metadata of a trained checkpoint: how it was made, and the statistics of its latents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from stae_cli._version import __version__
from stae_cli.network.architecture import UNIT
from stae_cli.network.stupid_ae import StupidAE
from stae_cli.training.loop import Loop
from stae_cli.training.photos import Crops, PhotoSet
from stae_cli.training.recipe import TrainSettings

POSITIONS = 1 << 17  # of 8x8 pixels, or as many pixels in larger ones
PURPOSE = 2


@dataclass(frozen=True)
class LatentStatistics:
    """Per channel mean and deviation, one shift and scale for all, and the largest magnitude.

    z' = (z - shift) * scale has mean 0 and variance 1 over all channels together; `scale` is None
    where all latents are the same.
    """

    mean: list[float]
    std: list[float]
    shift: float
    scale: float | None
    largest: float


@torch.no_grad()
def latent_statistics(model: StupidAE, crops: Crops) -> LatentStatistics:
    """Figures of the latents of many crops, in float32."""
    pixels = POSITIONS * UNIT**2
    latents = (model.encode(images) for images in crops.samples(PURPOSE, pixels=pixels))
    parts = [latent.transpose(0, 1).flatten(1).double().cpu() for latent in latents]
    values = torch.cat(parts, dim=1)  # (C, N)
    spread = float(values.std())
    return LatentStatistics(
        mean=[round(value, 5) for value in values.mean(1).tolist()],
        std=[round(value, 5) for value in values.std(1).tolist()],
        shift=round(float(values.mean()), 5),
        scale=round(1 / spread, 5) if spread else None,
        largest=round(float(values.abs().max()), 3),
    )


def describe(
    settings: TrainSettings,
    photos: PhotoSet,
    loop: Loop,
    statistics: LatentStatistics,
    validation: Mapping[str, Any] | None,
) -> dict[str, str]:
    """Metadata, all strings: JSON where there is more than one figure."""
    about = {
        "stae_version": __version__,
        "recipe": settings.recipe.describe(),
        "training": _json(
            steps=loop.step,
            minutes=round(loop.clock.seconds / 60, 2),
            device=str(loop.crops.device),
            processes=loop.ranks.processes,
            torch=torch.__version__,
        ),
        "data": _json(
            sources=[source.name for source in settings.sources],
            photos=[len(source) for source in photos.sources],
            megapixels=round(photos.pixels / 1e6, 1),
        ),
        "latents": _json(**asdict(statistics), images=photos.photos),
    }
    if validation is not None:
        about["validation"] = _json(**validation)
    return about


def _json(**facts: Any) -> str:
    return json.dumps(facts, separators=(",", ":"))

"""The metadata of a trained checkpoint: how it came to be, and what its latents are like."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from stae_cli._version import __version__
from stae_cli.training.loop import Loop
from stae_cli.training.photos import PhotoSet
from stae_cli.training.settings import TrainSettings
from stae_cli.training.statistics import LatentStatistics


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
        "latents": _json(
            mean=statistics.mean,
            std=statistics.std,
            shift=statistics.shift,
            scale=statistics.scale,
            largest=statistics.largest,
            images=photos.photos,
        ),
    }
    if validation is not None:
        about["validation"] = _json(**validation)
    return about


def _json(**facts: Any) -> str:
    return json.dumps(facts, separators=(",", ":"))

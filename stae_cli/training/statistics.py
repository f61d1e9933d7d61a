"""What a trained encoder's latents look like: the figures that those who train on them need."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stae_cli.network.architecture import UNIT
from stae_cli.network.stupid_ae import StupidAE
from stae_cli.training.crops import Crops

POSITIONS = 1 << 17  # of 8x8 pixels, or as many pixels in larger ones
PURPOSE = 2


@dataclass(frozen=True)
class LatentStatistics:
    """Per channel mean and standard deviation, one shift and scale for all, and the extreme.

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

"""What a trained encoder's latents look like: the figures that those who train on them need."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stae_cli.model.stupid_ae import StupidAE
from stae_cli.training.crops import Crops

POSITIONS = 1 << 17
DRAWN_APART = 1 << 41  # other crops than any step's, and than those of the linear start


@dataclass(frozen=True)
class LatentStatistics:
    """Per channel mean and standard deviation, one shift and scale for all, and the extreme.

    z' = (z - shift) * scale has mean 0 and variance 1 over all channels together.
    """

    mean: list[float]
    std: list[float]
    shift: float
    scale: float
    largest: float


@torch.no_grad()
def latent_statistics(model: StupidAE, crops: Crops) -> LatentStatistics:
    """Figures of the latents of many crops, in float32."""
    parts, count, step = [], 0, 0
    while count < POSITIONS:
        latents = model.encode(crops.batch(DRAWN_APART + step))  # (b, C, h, w)
        parts.append(latents.transpose(0, 1).flatten(1).double().cpu())
        count, step = count + parts[-1].shape[1], step + 1
    values = torch.cat(parts, dim=1)  # (C, N)
    return LatentStatistics(
        mean=[round(value, 5) for value in values.mean(1).tolist()],
        std=[round(value, 5) for value in values.std(1).tolist()],
        shift=round(float(values.mean()), 5),
        scale=round(1 / float(values.std()), 5),
        largest=round(float(values.abs().max()), 3),
    )

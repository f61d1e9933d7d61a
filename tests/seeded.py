"""Networks with seeded weights: the one the golden vectors belong to, and a tiny one."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from stae_cli.checkpoints.checkpoint import write_checkpoint
from stae_cli.network.architecture import F8C16, Architecture
from stae_cli.network.stupid_ae import StupidAE

GOLDEN_SEED = 20250801
TINY = Architecture("tiny", width=32, head_width=8)


def tiny_like(preset: Architecture) -> Architecture:
    """A preset's network but for its width."""
    return replace(preset, name=f"tiny-{preset.name}", width=32, head_width=8)


def seeded_tensors(
    architecture: Architecture = F8C16, seed: int = GOLDEN_SEED
) -> dict[str, torch.Tensor]:
    """Every tensor from a generator seeded by the seed and the tensor's own name."""
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in StupidAE(architecture).state_dict().items()}
    return {name: torch.from_numpy(_drawn(name, shape, seed)) for name, shape in shapes.items()}


def seeded_model(architecture: Architecture = F8C16, seed: int = GOLDEN_SEED) -> StupidAE:
    model = StupidAE(architecture)
    model.load_state_dict(seeded_tensors(architecture, seed), strict=True)
    return model.eval()


def tiny_checkpoint(path: Path, seed: int = 1) -> Path:
    """Writes a tiny network's checkpoint, for runs in which the real size adds nothing."""
    write_checkpoint(path, seeded_tensors(TINY, seed), TINY, {})
    return path


def _drawn(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    values = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    if name.endswith("norm.weight"):
        values = 1 + 0.1 * values
    elif name.endswith(".bias"):
        values = 0.1 * values
    elif not name.endswith("positions"):
        values = values / np.sqrt(np.prod(shape[1:]))  # keeps activations near unit variance
    return values.astype(np.float32)

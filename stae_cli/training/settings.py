"""What one run is told: sources, recipe, where to put the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stae_cli.checkpoints.checkpoint import Checkpoint
from stae_cli.network.architecture import Architecture
from stae_cli.training.recipe import Recipe


@dataclass(frozen=True)
class TrainSettings:
    """What to train on, how, and where to put it.

    `initial` is the checkpoint to start from, if any; where it has one stage and `architecture`
    two, its second one is trained behind it. `memory` bounds the bytes of pixels.
    """

    sources: Sequence[Path]
    out: Path
    recipe: Recipe
    architecture: Architecture
    initial: Checkpoint | None = None
    second_start: Literal["pca", "random"] = "pca"
    validate: Path | None = None
    memory: int = 4 << 30
    workers: int | None = None
    compiled: bool = False
    save_seconds: float = 300.0
    overwrite: bool = False

    @property
    def adds_stage(self) -> bool:
        """Whether a second stage is trained behind a first one that is there already."""
        first = self.initial is not None and self.initial.architecture.second is None
        return first and self.architecture.second is not None

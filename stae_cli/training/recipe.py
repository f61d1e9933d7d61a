"""The recipe: every setting that the loss curve depends on; and the settings of one run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from stae_cli.checkpoints.checkpoint import Checkpoint
from stae_cli.errors import UsageError
from stae_cli.network.architecture import Architecture

LONGEST_WARMUP = 100  # steps; a tenth of the run where that is less


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is trained; recorded in it, and compared when a run is resumed.

    Exactly one of `steps` and `minutes` is given; the learning rate falls to 0 over it along a
    cosine. `start` is `pca`, `random`, or the name and fingerprint of a checkpoint. `batch`
    counts crops over all processes, `crop` is their side in pixels.
    """

    start: str
    steps: int | None = None
    minutes: float | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    snoo: bool = False
    learning_rate: float = 5e-4
    batch: int = 32
    crop: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0

    @property
    def warmup(self) -> int:
        """Steps over which the learning rate rises to its full height."""
        return LONGEST_WARMUP if self.steps is None else min(LONGEST_WARMUP, self.steps // 10)

    def describe(self) -> str:
        """Canonical JSON of every setting."""
        settings = {key: value for key, value in asdict(self).items() if value is not None}
        return json.dumps(settings, sort_keys=True, separators=(",", ":"))

    def check(self, *, patch: int, processes: int) -> None:
        """Checks that the settings fit each other and the network.

        Raises:
            UsageError: they do not.
        """
        if (self.steps is None) == (self.minutes is None):
            raise UsageError("how long to train?", "give either `--steps` or `--minutes`")
        positive = (self.learning_rate, 1.0 if self.minutes is None else self.minutes)
        if not all(0 < each < math.inf for each in positive):
            raise UsageError(
                "`--minutes` and `--lr` must be numbers above 0", "omit them, or change them"
            )
        if self.crop % patch or self.crop < patch:
            raise UsageError(
                f"a crop of {self.crop} pixels is not a multiple of the patch",
                f"give a multiple of {patch} to `--crop`",
            )
        if self.batch % processes:
            raise UsageError(
                f"a batch of {self.batch} cannot be shared by {processes} processes",
                f"give a multiple of {processes} to `--batch`",
            )


# What the authors of the published checkpoint are known to have used; the rest is our choice.
PUBLISHED = Recipe(
    start="random",
    steps=30_000,
    optimizer="muon",
    snoo=True,
    learning_rate=1e-3,
    batch=256,
    crop=256,
)


def with_given(
    recipe: Recipe,
    *,
    start: str | None,
    steps: int | None,
    minutes: float | None,
    optimizer: Literal["adamw", "muon"] | None,
    snoo: bool | None,
    learning_rate: float | None,
    batch: int | None,
    crop: int | None,
    dtype: Literal["float32", "bfloat16"],
    seed: int,
) -> Recipe:
    """The recipe with the settings that are given in place of its own; None: not given."""
    by_its_own = steps is None and minutes is None
    return replace(
        recipe,
        start=recipe.start if start is None else start,
        steps=recipe.steps if by_its_own else steps,
        minutes=recipe.minutes if by_its_own else minutes,
        optimizer=recipe.optimizer if optimizer is None else optimizer,
        snoo=recipe.snoo if snoo is None else snoo,
        learning_rate=recipe.learning_rate if learning_rate is None else learning_rate,
        batch=recipe.batch if batch is None else batch,
        crop=recipe.crop if crop is None else crop,
        dtype=dtype,
        seed=seed,
    )


def differences(recorded: str, wanted: str) -> list[str]:
    """What two JSON objects of settings disagree about, in words."""
    old, new = json.loads(recorded), json.loads(wanted)
    found = [
        f"{key.replace('_', ' ')} was {old.get(key, 'not given')}, now {new.get(key, 'not given')}"
        for key in sorted((old.keys() | new.keys()) - {"photos"})
        if old.get(key) != new.get(key)
    ]
    if old.get("photos") != new.get("photos"):  # digests, which mean nothing to a reader
        found.append("the photos are not the same")
    return found


@dataclass(frozen=True)
class TrainSettings:
    """What to train on, how, and where to write the result.

    `initial` is the checkpoint to start from, if any; if it has one stage and `architecture` two,
    the second one is trained behind it. `memory` limits the bytes of decoded photos.
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
        """Whether a second stage is trained behind a first one that exists already."""
        first = self.initial is not None and self.initial.architecture.second is None
        return first and self.architecture.second is not None

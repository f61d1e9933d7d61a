"""The plan for latents of other programs: their network, their names, and what looks odd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stae_cli.errors import InputError, UsageError
from stae_cli.foreign.arrays import ForeignArray, ForeignLatent
from stae_cli.foreign.listing import named
from stae_cli.foreign.normalised import Undo, statistics_in
from stae_cli.latents.format import is_finite
from stae_cli.scaling import per_channel
from stae_cli.storage.entry import Problem

if TYPE_CHECKING:
    from stae_cli.checkpoints.checkpoint import Checkpoint

LOOKED_AT, LEAST = 64, 8  # latents
LEAST_POSITIONS = 2048
NEAR, APART = 0.25, 0.35  # mean difference of the logarithms of deviations

Values = npt.NDArray[np.float64]


@dataclass
class ForeignPlan:
    """The latents with their keys, the arrays that do not fit the network, and notes."""

    latents: list[ForeignLatent] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def network_of(weights: str | None, place: str) -> Checkpoint:
    """The checkpoint that the user names: files of other programs do not record one.

    Raises:
        UsageError: none is named.
        CheckpointError: it is not available.
    """
    if weights is None:
        raise UsageError(
            f"`{place}` does not record which network made its latents",
            "name it: `--weights`, such as `--weights builtin`",
        )
    from stae_cli.checkpoints.checkpoint import load_checkpoint

    return load_checkpoint(weights)


def foreign_latents(
    files: Sequence[Sequence[ForeignArray]], checkpoint: Checkpoint, undo: Undo
) -> ForeignPlan:
    """Names the latents of each file that fit the network.

    Raises:
        UsageError: statistics of another number of channels than the network's.
    """
    plan, channels = ForeignPlan(), checkpoint.architecture.channels
    undo.check(channels, "--stats")
    for arrays in files:
        reasons = [(array, array.misfit(channels)) for array in arrays]
        plan.problems += [Problem(array.label, reason) for array, reason in reasons if reason]
        if fitting := [array for array, reason in reasons if reason is None]:
            plan.latents += named(fitting)
    if undo.weights_sha256 not in ("", checkpoint.fingerprint):
        plan.notes.append(
            f"the statistics of --stats are of another checkpoint ({undo.weights_sha256[:12]}) "
            f"than `{checkpoint.name}` ({checkpoint.fingerprint[:12]})"
        )
    recorded = _recorded(checkpoint) if undo.is_nothing else None
    if recorded is not None and (note := _doubt(plan.latents, recorded)):
        plan.notes.append(note)
    return plan


def _recorded(checkpoint: Checkpoint) -> Values | None:
    """The deviation of each channel that a checkpoint records; None if it does not."""
    try:
        std = statistics_in(checkpoint.metadata)["std"]
        numbers = per_channel(std, "std", checkpoint.architecture.channels)
    except (InputError, LookupError, ValueError):
        return None
    return np.array(numbers) if min(numbers) > 0 else None


def _doubt(latents: Sequence[ForeignLatent], recorded: Values) -> str | None:
    """A note where values look normalised.

    Deviations are compared channel by channel: those of raw latents differ several-fold, those of
    normalised ones are all about 1.
    """
    found = _deviations(latents)
    if found is None or not (found > 0).all():
        return None
    raw, unit = (np.abs(np.log(found / expected)).mean() for expected in (recorded, 1.0))
    if unit > NEAR or unit + APART > raw:
        return None
    return (
        "the latents look normalised (each channel has a deviation near 1): if the pictures are "
        "wrong, undo that with `--stats`, or `--shift` and `--scale`"
    )


def _deviations(latents: Sequence[ForeignLatent]) -> Values | None:
    """The deviation of each channel in some of the latents; None if there are too few."""
    parts = []
    for latent in latents[:: max(1, len(latents) // LOOKED_AT)][:LOOKED_AT]:
        try:
            values = latent.read()
        except (InputError, OSError):  # the run reports it
            continue
        if is_finite(values):
            parts.append(values.reshape(len(values), -1)[:, :LEAST_POSITIONS].astype(np.float64))
    if len(parts) < LEAST or sum(part.shape[1] for part in parts) < LEAST_POSITIONS:
        return None
    found: Values = np.concatenate(parts, axis=1).std(axis=1)
    return found

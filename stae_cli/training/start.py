"""Where a run starts: the model before its first step, and a second stage behind a trained first.

The loss of a second stage is that of pixels, through both stages, and the first one is frozen. In
short runs (width 128, 64 channels, 400 steps of 8 crops) training its decoder too gained 0.08 dB
over that, and both its halves no more, while what the first stage does by itself fell from 29.6 to
28.6 and 28.3 dB. Frozen, its latents stay those of the checkpoint that it came from, and a step
costs a third less. To train both further: `stae train --from RESULT`, without `--stage`.
"""

from __future__ import annotations

import torch

from stae_cli.checkpoints.checkpoint import Checkpoint
from stae_cli.errors import UsageError
from stae_cli.network.architecture import PRESETS, Architecture
from stae_cli.network.stupid_ae import StupidAE, seeded
from stae_cli.training.linear import fit_pca, set_linear, set_second_linear
from stae_cli.training.photos import Crops
from stae_cli.training.recipe import TrainSettings

PCA = "pca"  # the start of new checkpoints that is not random


def two_stages(first: Checkpoint, wanted: Architecture | None) -> Architecture:
    """The architecture with a second stage behind `first`: the wanted one, or a preset.

    Raises:
        UsageError: `first` has two stages already, or no such network builds on it.
    """
    if first.architecture.second is not None:
        raise UsageError(
            f"`{first.name}` has two stages already", "omit `--stage` to train both of them further"
        )
    for each in PRESETS.values() if wanted is None else (wanted,):
        if each.second is not None and each.first.is_like(first.architecture):
            return each
    known = ", ".join(
        f"{each.name} on {each.first.name}" for each in PRESETS.values() if each.second
    )
    raise UsageError(
        f"no {wanted.name if wanted else 'second stage'} can be trained on `{first.name}`, which "
        f"is a {first.architecture.name}",
        f"these can: {known}",
    )


def first_model(settings: TrainSettings, crops: Crops, *, blank: bool) -> StupidAE:
    """The model before the first step.

    Args:
        settings: of the run.
        crops: what a linear start is fitted on.
        blank: skip the linear start, since a saved state will replace the weights.

    Raises:
        CheckpointError: a weight of the checkpoint to start from is too large for float32.
    """
    initial = settings.initial
    if initial is not None and not settings.adds_stage:
        return initial.model()
    with seeded(settings.recipe.seed):
        model = StupidAE(settings.architecture)
        if initial is not None:
            _set_first_stage(model, initial)
        elif settings.recipe.start == PCA and not blank:
            set_linear(model, fit_pca(crops, patch=settings.architecture.patch))
        linear = (settings.second_start if initial else settings.recipe.start) == PCA
        second = settings.architecture.second
        if second is not None and linear and not blank:
            first = model.encoder[0].to(crops.device)
            set_second_linear(model, fit_pca(crops, patch=second.patch, encoder=first))
    return model


def _set_first_stage(model: StupidAE, first: Checkpoint) -> None:
    """Gives a fresh network of two stages the first one of a checkpoint, and freezes it."""
    model.load_state_dict({**model.state_dict(), **first.cast(torch.float32)}, strict=True)
    for stage in (model.encoder[0], model.decoder[0]):
        stage.requires_grad_(False)

"""Where a run starts: the model before its first step."""

from __future__ import annotations

from stae_cli.checkpoints.checkpoint import Checkpoint
from stae_cli.errors import CheckpointError
from stae_cli.network.stupid_ae import StupidAE, seeded
from stae_cli.training.crops import Crops
from stae_cli.training.linear import fit_pca, set_linear, set_second_linear
from stae_cli.training.second_stage import hold_first, joined_to
from stae_cli.training.settings import TrainSettings

PCA, RANDOM = "pca", "random"  # starts of new checkpoints


def first_model(settings: TrainSettings, crops: Crops, *, blank: bool) -> StupidAE:
    """The model before the first step.

    Args:
        settings: of the run.
        crops: what a linear start is fitted on.
        blank: whether the weights do not matter, since a state will replace them.

    Raises:
        CheckpointError: the one to start from is broken.
    """
    initial = settings.initial
    if initial is not None:
        _check_finite(initial)
        if not settings.adds_stage:
            return initial.model()
    with seeded(settings.recipe.seed):
        model = StupidAE(settings.architecture)
        if initial is not None:
            hold_first(joined_to(initial, model))
        elif settings.recipe.start == PCA and not blank:
            set_linear(model, fit_pca(crops, patch=settings.architecture.patch))
        linear = (settings.second_start if initial else settings.recipe.start) == PCA
        if settings.architecture.second is not None and linear and not blank:
            _start_second(model, crops, settings.architecture.second.patch)
    return model


def _start_second(model: StupidAE, crops: Crops, patch: int) -> None:
    first = model.encoder[0].to(crops.device)
    set_second_linear(model, fit_pca(crops, patch=patch, encoder=first))


def _check_finite(initial: Checkpoint) -> None:
    """Checks that a checkpoint can be trained further, or built on.

    Raises:
        CheckpointError: it is broken.
    """
    for name, tensor in initial.tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"`{initial.name}` has NaN or infinity in `{name}`", "start from another checkpoint"
            )

"""A second stage behind a trained first one: where it starts, and what is trained of both.

The loss is that of pixels, through both stages, and the first one is held as it is. In short runs
(width 128, 64 channels, 400 steps of 8 crops) training its decoder too gained 0.08 dB over that,
and both its halves no more, while what the first stage does by itself fell from 29.6 to 28.6 and
28.3 dB. Held, its latents stay those of the checkpoint that it came from, and a step costs a third
less. Who wants the rest trains both from the result: `stae train --from`, without `--stage`.
"""

from __future__ import annotations

import torch

from stae_cli.checkpoints.checkpoint import Checkpoint
from stae_cli.errors import UsageError
from stae_cli.network.architecture import PRESETS, Architecture
from stae_cli.network.stupid_ae import StupidAE


def two_stages(first: Checkpoint, wanted: Architecture | None) -> Architecture:
    """The architecture of a second stage behind `first`: the one that is wanted, or its preset.

    Raises:
        UsageError: `first` has two stages already, or no such network builds on it.
    """
    if first.architecture.second is not None:
        raise UsageError(
            f"`{first.name}` has two stages already",
            "leave `--stage` away to train both of them further",
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


def joined_to(first: Checkpoint, model: StupidAE) -> StupidAE:
    """A fresh network of two stages with the weights of `first` as its first one."""
    model.load_state_dict({**model.state_dict(), **first.cast(torch.float32)}, strict=True)
    return model


def hold_first(model: StupidAE) -> StupidAE:
    """Keeps the first stage as it is: training moves the second one alone."""
    for stage in (model.encoder[0], model.decoder[0]):
        stage.requires_grad_(False)
    return model

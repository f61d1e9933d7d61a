"""The weights of `stae bench`: seeded ones, on which speed does not depend, or a checkpoint's."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stae_cli.model.checkpoint import Checkpoint

SEEDED = "seeded"


def load_weights(name: str) -> Checkpoint:
    """The seeded checkpoint, or the one that `--weights` names.

    Raises:
        UsageError: a malformed `hf://` name.
        CheckpointError: unknown, unreachable, damaged or no StupidAE.
    """
    from stae_cli.benchmark.contenders import seeded_checkpoint
    from stae_cli.model.checkpoint import load_checkpoint

    return seeded_checkpoint() if name == SEEDED else load_checkpoint(name)

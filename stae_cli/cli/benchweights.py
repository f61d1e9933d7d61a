"""The weights of `stae bench`: seeded ones, on which speed does not depend, or a checkpoint's."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stae_cli.checkpoints.checkpoint import Checkpoint

SEEDED = "seeded"


def load_weights(name: str, architecture: str | None) -> Checkpoint:
    """The checkpoint that `--weights` names, or seeded weights of the architecture.

    Raises:
        UsageError: a malformed `hf://` name, or an unknown architecture.
        CheckpointError: unknown, unreachable, damaged, no StupidAE or another network's.
    """
    from stae_cli.benchmark.contenders import seeded_checkpoint
    from stae_cli.checkpoints.checkpoint import check_architecture, load_checkpoint
    from stae_cli.network.architecture import F8C16, preset

    if name == SEEDED:
        return seeded_checkpoint(preset(architecture or F8C16.name))
    checkpoint = load_checkpoint(name)
    if architecture is not None:
        check_architecture(checkpoint, preset(architecture))
    return checkpoint

"""The checkpoint that latents were made with: by the name they record, else by its fingerprint."""

from __future__ import annotations

from stae_cli.checkpoints.checkpoint import Checkpoint, load_that_made, read_checkpoint
from stae_cli.checkpoints.names import at_hand, locate_recorded
from stae_cli.errors import CheckpointError


def find_that_made(
    name: str, recorded_fingerprint: str, *, architecture: str, asked: str | None
) -> Checkpoint:
    """What `load_that_made` loads; a name that is not at hand may be another one's of the same.

    Raises:
        UsageError: a malformed `hf://` name.
        CheckpointError: it is not at hand, or another one.
    """
    if asked is None and locate_recorded(name) is None:
        found = _with_fingerprint(recorded_fingerprint)
        if found is not None:
            return found
    return load_that_made(name, recorded_fingerprint, architecture=architecture, asked=asked)


def _with_fingerprint(wanted: str) -> Checkpoint | None:
    for located in at_hand():
        try:
            checkpoint = read_checkpoint(located.path, name=located.name)
        except CheckpointError:  # a damaged cache is not what was asked for
            continue
        if checkpoint.fingerprint == wanted:
            return checkpoint
    return None

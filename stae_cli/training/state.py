"""The state file of a run: everything to go on from, whole on the disk or not there."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from stae_cli.errors import StaeError
from stae_cli.model.tensorfiles import DAMAGED_PICKLE


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Replaces the state; whatever happens, the old or the new one is there and whole.

    Raises:
        StaeError: the disk is full or cannot be written to; the old state stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into the latter
        temporary.unlink(missing_ok=True)
        reason = str(error).splitlines()[0][:200]
        raise StaeError(
            f"cannot save the training state to `{path}`: {reason}",
            "make room and run the same command again: it goes on from the last state saved",
        ) from error


def load_state(path: Path) -> dict[str, Any] | None:
    """The last state, on the CPU; None if there is none.

    Raises:
        StaeError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, pickle.UnpicklingError, *DAMAGED_PICKLE) as error:
        raise StaeError(
            f"the training state `{path}` is damaged", "start anew with `--overwrite`"
        ) from error
    assert isinstance(state, dict)
    return state

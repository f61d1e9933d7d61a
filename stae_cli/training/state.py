"""The state file of a run: everything to go on from, whole on the disk or not there."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stae_cli.checkpoints.tensor_files import DAMAGED_PICKLE
from stae_cli.codec.device import is_memory_error
from stae_cli.errors import StaeError

FORMAT = 2


@dataclass(frozen=True)
class State:
    """Where a run stood.

    `settings` is JSON of all that must be the same when it is resumed; `replaces` the digest of
    the file that its checkpoint will replace, if any; `loop` the state of the loop.
    """

    settings: str
    replaces: str | None
    loop: dict[str, Any]


def save_state(path: Path, state: State) -> None:
    """Replaces the state; whatever happens, the old or the new one is there and whole.

    Raises:
        StaeError: the disk is full or cannot be written to; the old state stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # one name, so that none is left for good
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **vars(state)}, file)
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


def load_state(path: Path) -> State | None:
    """The last state, on the CPU; None if there is none.

    Raises:
        StaeError: the file is damaged, or another version's.
    """
    if not path.exists():
        return None
    with told_if_damaged(path):
        saved = torch.load(path, map_location="cpu", weights_only=True)
        version = saved.pop("format")
        if version == FORMAT:
            return _checked(State(**saved))
    raise StaeError(f"`{path}` was written by another version", "remove it to start anew")


def _checked(state: State) -> State:
    fields = isinstance(state.settings, str) and isinstance(state.replaces, str | None)
    if not (fields and isinstance(json.loads(state.settings), dict)):
        raise TypeError("no settings")
    if not all(isinstance(weights, Tensor) for weights in state.loop["average"].values()):
        raise TypeError("no weights")
    return state


@contextmanager
def told_if_damaged(path: Path) -> Iterator[None]:
    """Within it, what cannot be made of a state is its file's fault.

    Raises:
        StaeError: something cannot.
    """
    try:
        yield
    except (OSError, pickle.UnpicklingError, *DAMAGED_PICKLE) as error:
        if is_memory_error(error):
            raise
        raise StaeError(
            f"the training state `{path}` is damaged", "remove it to start anew"
        ) from error

"""What a run goes on from: its state, which is replaced atomically, and the log of its steps."""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stae_cli.checkpoints.tensor_files import DAMAGED_PICKLE
from stae_cli.codec.device import is_memory_error
from stae_cli.errors import StaeError

FORMAT = 2


@dataclass(frozen=True)
class State:
    """Where a run stands.

    `settings` is JSON of all that must be the same when it is resumed; `replaces` the digest of
    the file that its checkpoint will replace, if any; `loop` the state of the loop.
    """

    settings: str
    replaces: str | None
    loop: dict[str, Any]


def save_state(path: Path, state: State) -> None:
    """Replaces the state file; after a crash the old or the new one is there, and whole.

    Raises:
        StaeError: the disk is full or cannot be written to; the old state stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # always the same, so that none is left over
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
            "free some disk space and run the same command again: it goes on from the last state",
        ) from error


def load_state(path: Path) -> State | None:
    """The last state, on the CPU; None if there is none.

    Raises:
        StaeError: the file is damaged, or another version's.
    """
    if not path.exists():
        return None
    with damage_reported(path):
        saved = torch.load(path, map_location="cpu", weights_only=True)
        version = saved.pop("format")
        if version == FORMAT:
            return _checked(State(**saved))
    raise StaeError(f"`{path}` was written by another version", "remove it to start again")


def _checked(state: State) -> State:
    fields = isinstance(state.settings, str) and isinstance(state.replaces, str | None)
    if not (fields and isinstance(json.loads(state.settings), dict)):
        raise TypeError("no settings")
    if not all(isinstance(weights, Tensor) for weights in state.loop["average"].values()):
        raise TypeError("no weights")
    return state


@contextmanager
def damage_reported(path: Path) -> Iterator[None]:
    """Reports an error in reading or applying a state as damage of its file.

    Raises:
        StaeError: the file is damaged.
    """
    try:
        yield
    except (OSError, pickle.UnpicklingError, *DAMAGED_PICKLE) as error:
        if is_memory_error(error):
            raise
        raise StaeError(
            f"the training state `{path}` is damaged", "remove it to start again"
        ) from error


class Log:
    """A file of JSON objects, one a line, with `step`, and `loss` or `psnr` or both."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends one line.

        Raises:
            StaeError: the disk is full.
        """
        self._write("a", [line])

    def cut(self, step: int) -> None:
        """Drops the lines after a step: a resumed run logs them again.

        Raises:
            StaeError: the file cannot be read or written.
        """
        self._write("w", [line for line in self.read() if line["step"] <= step])

    def read(self) -> list[dict[str, Any]]:
        """The lines so far; damaged ones, such as one that a kill cut short, are skipped.

        Raises:
            StaeError: the file cannot be read.
        """
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StaeError(
                f"cannot read `{self.path}`: {error.strerror or error}", "move it away"
            ) from error
        lines = map(_parsed, text.splitlines())
        return [line for line in lines if line is not None]

    def _write(self, mode: Literal["a", "w"], lines: Sequence[Mapping[str, Any]]) -> None:
        try:
            with self.path.open(mode, encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        except OSError as error:
            raise StaeError(
                f"cannot write `{self.path}`: {error.strerror or error}",
                "free some disk space and run the same command again",
            ) from error


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        return None
    loss, psnr = line.get("loss", 0.0), line.get("psnr")
    sound = _is_number(loss) and 0 <= loss < math.inf and (psnr is None or _is_number(psnr))
    return line if sound else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not math.isnan(value)

"""The folder beside a checkpoint in the making: state, log and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from stae_cli.errors import StaeError, UsageError
from stae_cli.model.weights import SAFETENSORS_SUFFIX
from stae_cli.training.recipe import differences
from stae_cli.training.state import load_state, save_state

FORMAT = 1


class Workspace:
    """`NAME.training/` beside `NAME.safetensors`.

    Args:
        out: the checkpoint to be.
        settings: JSON of all that must be the same when the run is resumed.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.with_name(f"{out.stem}.training")
        self.state = self.folder / "state.pt"
        self.last = self.folder / "last.safetensors"
        self.log = self.folder / "log.jsonl"
        self.curve = self.folder / "curve.png"
        self.samples = self.folder / "samples.png"

    def prepare(self, *, overwrite: bool) -> None:
        """Makes the folder, and checks that nothing would be lost.

        Raises:
            UsageError: the checkpoint's name does not do, or it exists.
            StaeError: the folder cannot be made.
        """
        if self.out.suffix != SAFETENSORS_SUFFIX:
            raise UsageError(f"`{self.out}` does not end in .safetensors", "name such a file")
        if self.out.is_dir():
            raise UsageError(f"`{self.out}` is a folder", "name a file")
        if self.out.exists() and not overwrite:
            raise UsageError(f"`{self.out}` exists", "give another name, or `--overwrite`")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if overwrite:
                for path in (self.state, self.last, self.log):
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise StaeError(
                f"cannot write to `{self.folder}`: {error.strerror or error}",
                "give another `--out`",
            ) from error

    def resume(self, settings: str) -> dict[str, Any] | None:
        """The last state of a run with these settings; None if there is none.

        Raises:
            StaeError: there is one with other settings, or it is damaged.
        """
        saved = load_state(self.state)
        if saved is None:
            return None
        if saved.get("format") != FORMAT:
            raise StaeError(
                f"`{self.state}` was written by another version", "start anew with `--overwrite`"
            )
        if saved["settings"] != settings:
            what = "; ".join(differences(saved["settings"], settings))
            raise StaeError(
                f"the run in `{self.folder}` has other settings: {what}",
                "repeat its settings to go on, or start anew with `--overwrite`",
            )
        state = saved["loop"]
        assert isinstance(state, dict)
        return state

    def save(self, settings: str, state: Mapping[str, Any]) -> None:
        """Replaces the state.

        Raises:
            StaeError: it cannot be written; the old one stays.
        """
        save_state(self.state, {"format": FORMAT, "settings": settings, "loop": dict(state)})

    def finish(self) -> None:
        """Removes what only an unfinished run needs."""
        self.state.unlink(missing_ok=True)
        self.last.unlink(missing_ok=True)

    def cut_log(self, step: int) -> None:
        """Drops what was logged after a step: a resumed run logs it again."""
        kept = [line for line in self.read_log() if line["step"] <= step]
        self._write("w", kept)

    def write_log(self, line: Mapping[str, Any]) -> None:
        """Appends one line.

        Raises:
            StaeError: the disk is full.
        """
        self._write("a", [line])

    def _write(self, mode: Literal["a", "w"], lines: Sequence[Mapping[str, Any]]) -> None:
        try:
            with self.log.open(mode, encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        except OSError as error:
            raise StaeError(
                f"cannot write `{self.log}`: {error.strerror or error}",
                "make room and run the same command again",
            ) from error

    def read_log(self) -> list[dict[str, Any]]:
        """The lines so far; one that a kill cut short is passed over."""
        if not self.log.exists():
            return []
        lines = []
        for text in self.log.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
        return lines

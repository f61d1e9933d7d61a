"""The log of a run: a JSON object a line, for each few steps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from stae_cli.errors import StaeError


class Log:
    """A file of lines with `step`, and `loss` or `psnr` or both."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends one line.

        Raises:
            StaeError: the disk is full.
        """
        self._write("a", [line])

    def cut(self, step: int) -> None:
        """Drops what was logged after a step: a resumed run logs it again.

        Raises:
            StaeError: the file cannot be read or written.
        """
        self._write("w", [line for line in self.read() if line["step"] <= step])

    def read(self) -> list[dict[str, Any]]:
        """The lines so far; one that a kill cut short, and other damage, is passed over.

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
                "make room and run the same command again",
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

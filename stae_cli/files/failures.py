"""The failures file, `DEST/failures.jsonl`: every input of the last run that gave no output."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence

from stae_cli.files.destination import Destination
from stae_cli.files.sources import Problem

NAME = "failures.jsonl"


def write_failures(destination: Destination, problems: Sequence[Problem]) -> None:
    """Rewrites the file, or removes it when nothing failed."""
    if not problems:
        with contextlib.suppress(FileNotFoundError):
            destination.path(NAME).unlink()
        return
    lines = [json.dumps({"source": p.key, "reason": p.reason}) for p in problems]
    with destination.writing(NAME) as path:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

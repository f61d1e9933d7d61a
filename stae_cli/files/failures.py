"""The failures file: every input of the last run that gave no output, one line of JSON each."""

from __future__ import annotations

import json
from collections.abc import Sequence

from stae_cli.files.destination import Destination
from stae_cli.files.entries import Problem
from stae_cli.files.shares import Share

NAME = "failures"


def failures_name(share: Share) -> str:
    """What the file of this process is called."""
    return share.file_name(NAME)


def write_failures(destination: Destination, problems: Sequence[Problem], share: Share) -> None:
    """Rewrites this process's file, or removes it when nothing failed.

    Files of runs that were shared by another number of processes are out of date, and removed.
    """
    name = failures_name(share)
    for other in destination.top_names():
        if share.outdates(other, NAME) or (other == name and not problems):
            destination.remove(other)
    if not problems:
        return
    lines = [json.dumps({"source": p.key, "reason": p.reason}) for p in problems]
    with destination.writing(name) as path:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

"""The failures file: each input of the last run that has no output, as a line of JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from stae_cli.storage.destination import Destination
from stae_cli.storage.entry import Problem
from stae_cli.storage.shares import Share, shared_lines

NAME = "failures"


def failures_name(share: Share) -> str:
    """The name of this process's file."""
    return share.file_name(NAME)


def write_failures(destination: Destination, problems: Sequence[Problem], share: Share) -> None:
    """Rewrites this process's file, or removes it if nothing failed.

    Files of runs with another number of processes are outdated, and removed.
    """
    name = failures_name(share)
    for other in destination.top_names():
        if share.outdates(other, NAME) or (other == name and not problems):
            destination.remove(other)
    if problems:
        lines = [json.dumps({"source": p.key, "reason": p.reason}) for p in problems]
        with destination.writing(name) as path:
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_failures(destination: Destination) -> list[Problem]:
    """The failures of all processes of the last run.

    A line that cannot be read is a failure under the file's own name.

    Raises:
        StaeError: DEST cannot be read.
    """
    return [_problem(name, line) for name, line in shared_lines(destination, NAME)]


def _problem(name: str, line: bytes) -> Problem:
    try:
        row = json.loads(line)
        return Problem(str(row["source"]), str(row["reason"]))
    except (ValueError, KeyError, TypeError):
        return Problem(name, "holds a line that cannot be read")

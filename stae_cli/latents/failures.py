"""The failures of a run, listed in DEST."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stae_cli.storage.destination import Destination
from stae_cli.storage.entry import Problem
from stae_cli.storage.shares import Share, remove_outdated, shared_lines

FAILURES = "failures"  # name of the files, without rank and suffix


@dataclass(frozen=True)
class Failure(Problem):
    """A line of failures: an input, why it failed, and the roots of the run's sources."""

    roots: tuple[str, ...]
    file: str  # that holds the line


def failures_name(share: Share) -> str:
    """The name of this process's file."""
    return share.file_name(FAILURES)


def read_failures(destination: Destination) -> list[Problem]:
    """The failures of all processes of the last run, as `shared_lines` reads them."""
    return list(shared_lines(destination, FAILURES, _parsed))


def write_failures(
    destination: Destination,
    problems: Sequence[Problem],
    share: Share,
    *,
    roots: Collection[str],
    concerns: Callable[[str], bool] = lambda _: True,
) -> None:
    """Rewrites this process's file, or removes it if nothing is left to list.

    The failures of other sources stay. Files of runs with another number of processes are outdated,
    and removed.

    Args:
        destination: DEST.
        problems: what failed now.
        share: the part of the run.
        roots: what identifies the roots of its sources.
        concerns: whether a key of these roots was the run's to read.
    """
    name, failed = failures_name(share), {problem.key for problem in problems}
    kept = [
        line
        for line in _left_by(destination, share)
        if line.key not in failed
        and (not set(line.roots).intersection(roots) or not concerns(line.key))
    ]
    remove_outdated(destination, FAILURES, share)
    listed = [*kept, *(Failure(p.key, p.reason, tuple(sorted(roots)), name) for p in problems)]
    if listed:
        with destination.writing(name) as path:
            path.write_text("".join(map(_line, listed)), encoding="utf-8")
    elif destination.holds(name):
        destination.remove(name)


def _left_by(destination: Destination, share: Share) -> Iterator[Failure]:
    """What this process's file lists, and the first one's too what outdated files list.

    Earlier versions did not record the roots; as they did, such lines give way.
    """
    for line in shared_lines(destination, FAILURES, _parsed):
        if isinstance(line, Failure) and line.roots:
            mine = line.file == failures_name(share)
            if mine or (share.rank == 0 and share.outdates(line.file, FAILURES)):
                yield line


def _line(failure: Failure) -> str:
    values = {"source": failure.key, "reason": failure.reason, "roots": failure.roots}
    return json.dumps(values) + "\n"


def _parsed(file: str, row: dict[str, Any]) -> Failure:
    roots = tuple(map(str, row.get("roots", ())))
    return Failure(str(row["source"]), str(row["reason"]), roots, file)

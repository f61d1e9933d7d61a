"""Shares: the part of a run that one of several processes does, and the files that it writes."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from stae_cli.errors import StaeError, UsageError
from stae_cli.storage.destination import Destination
from stae_cli.storage.entry import Problem

SUFFIX = ".jsonl"
PIECE = 1 << 20  # bytes of an object that are read in one request

Line = TypeVar("Line")


@dataclass(frozen=True)
class Share:
    """Process `rank` of `count` that share a run without communicating.

    `said_by` names the option, the variables or the launcher that said so.

    Raises:
        UsageError: there is no such process.
    """

    rank: int = 0
    count: int = 1
    said_by: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise UsageError(
                f"there is no rank {self.rank} among {self.count} processes",
                f"ranks go from 0 to {self.count - 1}",
            )

    def __str__(self) -> str:
        return f"part {self.rank} of {self.count}"

    @property
    def numbers(self) -> tuple[int, int]:
        """Rank and count."""
        return self.rank, self.count

    def takes(self, unit: int) -> bool:
        """Whether a unit, counted from 0, belongs to this process."""
        return unit % self.count == self.rank

    def file_name(self, name: str) -> str:
        """The name of this process's own file `name`."""
        if self.count == 1:
            return f"{name}{SUFFIX}"
        return f"{name}-{self.rank}-of-{self.count}{SUFFIX}"

    def outdates(self, file_name: str, name: str) -> bool:
        """Whether a file of this name is from a run with another number of processes."""
        match = re.fullmatch(rf"{name}(?:-\d+-of-(\d+))?{re.escape(SUFFIX)}", file_name)
        return match is not None and int(match[1] or 1) != self.count


def is_shared_file(file_name: str, name: str) -> bool:
    """Whether this is the file `name` of any process of any run."""
    if not file_name.endswith(SUFFIX):  # almost always so, and called millions of times
        return False
    return re.fullmatch(rf"{name}(-\d+-of-\d+)?{re.escape(SUFFIX)}", file_name) is not None


def remove_outdated(destination: Destination, name: str, share: Share) -> None:
    """Removes the files `name` of runs with another number of processes."""
    for found in destination.top_names():
        if share.outdates(found, name):
            destination.remove(found)


def shared_lines(
    destination: Destination, name: str, parse: Callable[[str, dict[str, Any]], Line]
) -> Iterator[Line | Problem]:
    """The lines of JSON in the files `name` of all processes in DEST, in any order.

    A line that cannot be read is a problem of its file.

    Args:
        destination: DEST.
        name: of the files, without rank and suffix.
        parse: called with the name of the file and the object on a line.

    Raises:
        StaeError: DEST cannot be read.
    """
    for found in destination.top_names():
        if not is_shared_file(found, name):
            continue
        try:
            with destination.entry(found).open() as file:
                # Without a buffer each line of an object would be a request.
                whole = isinstance(file, io.BufferedIOBase)
                lines = file if whole else io.BufferedReader(cast(io.RawIOBase, file), PIECE)
                yield from (_parsed(found, line, parse) for line in lines)
        except OSError as error:
            reason = error.strerror or error
            raise StaeError(f"cannot read `{destination.place(found)}`: {reason}") from error


def _parsed(file: str, line: bytes, parse: Callable[[str, dict[str, Any]], Line]) -> Line | Problem:
    try:
        return parse(file, json.loads(line))
    except (ValueError, KeyError, TypeError):
        return Problem(file, "holds a line that cannot be read")

"""Shares: the part of a run that one of several processes does, and the files that it writes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from stae_cli.errors import StaeError, UsageError
from stae_cli.storage.destination import Destination

SUFFIX = ".jsonl"
PIECE = 1 << 20  # bytes of an object that are read in one request


@dataclass(frozen=True)
class Share:
    """Process `rank` of `count` that share a run without communicating.

    Raises:
        UsageError: there is no such process.
    """

    rank: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise UsageError(
                f"there is no rank {self.rank} among {self.count} processes",
                f"ranks go from 0 to {self.count - 1}",
            )

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


def shared_lines(destination: Destination, name: str) -> Iterator[tuple[str, bytes]]:
    """The lines of the file `name` of all processes in DEST, each with the name of its file.

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
                yield from ((found, line) for line in lines)
        except OSError as error:
            reason = error.strerror or error
            raise StaeError(f"cannot read `{destination.place(found)}`: {reason}") from error

"""Parts: what each process of a shared run leaves in DEST, so that all of them cut the same units.

Processes that list the sources at different moments may see different ones, and would cut them into
different units: some pictures would be encoded twice, others by nobody. So each writes how it cut
them before it begins, and then looks at what the others wrote.

Sources may change once all parts have finished. The first process that begins after that begins a
new generation, and the files of the one before do not bind anybody any more.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from stae_cli.errors import StaeError
from stae_cli.latents.manifest import NAME as MANIFEST
from stae_cli.storage.destination import Destination
from stae_cli.storage.entry import Problem
from stae_cli.storage.shares import Share, remove_outdated, shared_lines

NAME = "part"
BYTES = 240  # of a file
State = Literal["begun", "stopped", "finished"]


@dataclass(frozen=True)
class PartNote:
    """What a process says of its part.

    `units` is a digest of how it cut the sources, `inputs` how many there were. `process` differs
    from process to process. `state` is `stopped` after an error too, `finished` after failures of
    inputs.
    """

    units: str
    inputs: int
    generation: int
    process: str
    state: State = "begun"

    def binds(self, other: PartNote) -> bool:
        """Whether `other`, which was cut in another way, must not begin while this stands."""
        return self.units != other.units and (
            self.state == "begun"
            or (self.state == "finished" and self.generation >= other.generation)
        )


class Part:
    """The part of a run that this process does, in DEST from its beginning.

    Args:
        destination: DEST.
        share: which part; without others nothing is written.
        units: a digest of the units that all processes must have cut.
        inputs: how many there are, for messages.
    """

    def __init__(self, destination: Destination, share: Share, units: str, inputs: int) -> None:
        self.destination, self.share = destination, share
        self._note = PartNote(units, inputs, 0, secrets.token_hex(8))
        self._is_over = share.count == 1

    def begin(self) -> None:
        """Says that it begins, then makes sure that the others cut the same units.

        Of two that begin together with different units, at least one sees the other.

        Raises:
            StaeError: another part was cut in another way; or DEST cannot be read or written to.
        """
        if self._is_over:
            return
        before = self._notes()
        mine = before.get(self.share.rank)
        latest = max((note.generation for note in before.values()), default=0)
        ended = [note.units for note in before.values() if note.state == "finished"]
        if len(ended) == self.share.count and {*ended} - {self._note.units} == {ended[0]}:
            latest += 1  # all have done the same, and the sources have changed since
        self._note = replace(self._note, generation=latest)
        self._write(self._note)
        try:
            for rank, note in self._notes().items():
                if rank != self.share.rank and note.binds(self._note):
                    raise self._refusal(rank, note)
        except BaseException:
            self._is_over = True
            if mine is None:
                self.destination.remove(self._name(self.share.rank))
            else:
                self._write(mine)
            raise
        remove_outdated(self.destination, NAME, self.share)

    def finish(self) -> list[int]:
        """Says that it did all it could; returns the ranks that have not.

        Raises:
            StaeError: another process has taken this part, or a run of other parts all of them.
        """
        if self.share.count == 1:  # whatever parts there were, this run did them
            remove_outdated(self.destination, NAME, self.share)
            return []
        notes = self._notes()
        mine = notes.get(self.share.rank)
        self._is_over = True
        if mine is None or mine.process != self._note.process:
            raise StaeError(
                f"another run began in `{self.destination.place()}` during {self.share}",
                "give each process a rank of its own; then run all parts again: they resume",
            )
        self._write(replace(self._note, state="finished"))
        done = {rank for rank, note in notes.items() if self._is_done(note)} | {self.share.rank}
        return [rank for rank in range(self.share.count) if rank not in done]

    def close(self) -> None:
        """Says that it was stopped, unless it has finished."""
        if not self._is_over:
            with suppress(StaeError):  # there is another error to report
                self._write(replace(self._note, state="stopped"))

    def _is_done(self, note: PartNote) -> bool:
        return note.state == "finished" and note.units == self._note.units

    def _notes(self) -> dict[int, PartNote]:
        """What is there of this number of parts, by rank; by name, since DEST may be large."""
        found = {}
        for rank in range(self.share.count):
            note = _read(self.destination, self._name(rank))
            if note is not None:
                found[rank] = note
        return found

    def _name(self, rank: int) -> str:
        return Share(rank, self.share.count).file_name(NAME)

    def _write(self, note: PartNote) -> None:
        with self.destination.writing(self._name(self.share.rank)) as path:
            # One size: on stores the size is looked up first, and may be that of the last state.
            path.write_text(json.dumps(asdict(note)).ljust(BYTES) + "\n", encoding="utf-8")

    def _refusal(self, rank: int, note: PartNote) -> StaeError:
        other = Share(rank, self.share.count)
        here = "others" if note.inputs == self._note.inputs else f"{self._note.inputs:,}"
        names = self.destination.place(f"{NAME}-*-of-{self.share.count}.jsonl")
        return StaeError(
            f"{other} began with {note.inputs:,} inputs and {self.share} with {here}: the sources "
            "differ, or changed between their starts",
            f"once they do not change any more and no part is running, remove `{names}` and run "
            "all parts again: they resume",
        )


def unfinished_parts(destination: Destination) -> Iterator[Problem]:
    """The parts of the last shared run that have not finished, as far as its files tell.

    Raises:
        StaeError: DEST cannot be read.
    """
    notes: dict[int, dict[int, PartNote]] = {}
    for found in shared_lines(destination, NAME, _parsed):
        if isinstance(found, Problem):
            yield found
        else:
            share, note = found
            notes.setdefault(share.count, {})[share.rank] = note
    for count, of_rank in notes.items():
        latest = max(of_rank.values(), key=lambda note: (note.generation, note.state == "finished"))
        for share in (Share(rank, count) for rank in range(count)):
            mine = of_rank.get(share.rank)
            if mine is None or mine.state != "finished":
                yield Problem(share.file_name(NAME), f"{share} has not finished")
            elif mine.units != latest.units:
                reason = f"{share} has not been run since the sources changed"
                yield Problem(share.file_name(NAME), reason)
    if not notes:
        yield from _parts_without_manifest(destination.top_names())


def _parts_without_manifest(names: Sequence[str]) -> Iterator[Problem]:
    """The same where an earlier version wrote shards: each part ended with its manifest."""
    shares = {share for name in names if (share := _share_of(name, MANIFEST)) is not None}
    for count in {share.count for share in shares}:
        for share in (Share(rank, count) for rank in range(count)):
            if share not in shares:
                yield Problem(share.file_name(MANIFEST), f"{share} has not finished")


def _read(destination: Destination, name: str) -> PartNote | None:
    place = destination.place(name)
    try:
        with destination.entry(name).open() as file:
            return _parsed(name, json.loads(file.read()))[1]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StaeError(f"cannot read `{place}`: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StaeError(f"`{place}` is not a file of stae", "remove it") from error


def _parsed(name: str, row: dict[str, Any]) -> tuple[Share, PartNote]:
    """Raises ValueError, KeyError or TypeError if it is not one of ours."""
    share = _share_of(name, NAME)
    note = PartNote(
        str(row["units"]),
        int(row["inputs"]),
        int(row["generation"]),
        str(row["process"]),
        row["state"],
    )
    if share is None or note.state not in get_args(State):
        raise ValueError(name)
    return share, note


def _share_of(file_name: str, name: str) -> Share | None:
    match = re.fullmatch(name + r"-(\d{1,6})-of-(\d{1,6})\.jsonl", file_name)
    if match is None or int(match[1]) >= int(match[2]):
        return None
    return Share(int(match[1]), int(match[2]))

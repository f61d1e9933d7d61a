"""What a run did: counts, failures, sizes, and where its time went."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from stae_cli.errors import InputError, StaeError
from stae_cli.interrupts import Interrupts, held_interrupts
from stae_cli.latents.manifest import Manifest
from stae_cli.latents.orphans import Orphan
from stae_cli.storage.entry import Problem
from stae_cli.storage.shares import Share

Stage = Literal["reading", "network", "writing"]
Item = TypeVar("Item")


def problem_or(key: str, read: Callable[[], Item]) -> Item | Problem:
    """What `read` returns, or why this input cannot be used."""
    try:
        return read()
    except InputError as error:
        return Problem(key, error.message)
    except OSError as error:
        return Problem(key, f"cannot read it: {error.strerror or error}")


@dataclass(frozen=True)
class PartTally:
    """What became of one part of a run that another process did; small, and can be pickled.

    `manifest` holds lines for the run's manifest, `log` what was logged, `error` what ended the
    part early.
    """

    done: int
    skipped: int
    noted: int
    problems: Sequence[Problem]
    pixels: int
    bytes_written: int
    waits: Mapping[Stage, float]
    orphans: Sequence[Orphan]
    manifest: bytes
    log: Sequence[logging.LogRecord]
    error: StaeError | None


@dataclass
class Tally:
    """Counts of inputs, and the seconds that the run's own thread spent on each stage.

    Files are read and written by other threads meanwhile: the seconds of a stage are those in which
    the run waited for it. A `strict` run ends at the first failure. `stopped` says whether another
    process asks for an end. `manifest` lists the latents of a run that makes shards. `unfinished`
    are the other parts of a shared run that have not finished.
    """

    advance: Callable[[int], None]
    share: Share = field(default_factory=Share)
    strict: bool = False
    stopped: Callable[[], bool] = lambda: False
    manifest: Manifest | None = None
    done: int = 0
    skipped: int = 0
    noted: int = 0  # of those that were skipped, with a new caption or label
    problems: list[Problem] = field(default_factory=list)
    orphans: list[Orphan] = field(default_factory=list)  # that only reading tars shows
    pixels: int = 0
    bytes_written: int = 0
    seconds: float = 0.0
    unfinished: Sequence[int] = ()
    waits: dict[Stage, float] = field(
        default_factory=lambda: {"reading": 0.0, "network": 0.0, "writing": 0.0}
    )
    _interrupts: Interrupts = field(default_factory=Interrupts)

    def written(self, size: int, outputs: int = 1) -> None:
        """Outputs are complete on disk."""
        self.done += outputs
        self.bytes_written += size
        self.advance(outputs)

    def skip(self) -> None:
        """One output was done already."""
        self.skipped += 1
        self.advance(1)

    def fail(self, problem: Problem) -> None:
        """One input gave no output.

        Raises:
            StaeError: the run is strict.
        """
        self.problems.append(problem)
        self.advance(1)
        if self.strict:
            raise StaeError(
                f"{problem.key}: {problem.reason}",
                "fix or move it, or omit `--strict` to go on past failures",
            )

    def part(
        self, *, manifest: bytes, log: Sequence[logging.LogRecord], error: StaeError | None
    ) -> PartTally:
        """The counts so far, for the `add` of the process that began the run."""
        return PartTally(
            done=self.done,
            skipped=self.skipped,
            noted=self.noted,
            problems=self.problems,
            pixels=self.pixels,
            bytes_written=self.bytes_written,
            waits=self.waits,
            orphans=self.orphans,
            manifest=manifest,
            log=log,
            error=error,
        )

    def add(self, part: PartTally) -> None:
        """Counts what another process did, and logs what it logged.

        Raises:
            StaeError: what ended it.
        """
        for record in part.log:
            logging.getLogger(record.name).handle(record)
        if self.manifest is not None:
            self.manifest.extend(part.manifest)
        self.done += part.done
        self.skipped += part.skipped
        self.noted += part.noted
        self.problems += part.problems
        self.orphans += part.orphans
        self.pixels += part.pixels
        self.bytes_written += part.bytes_written
        for stage, seconds in part.waits.items():
            self.waits[stage] += seconds
        self.advance(part.done + part.skipped + len(part.problems))
        if part.error is not None:
            raise part.error

    @contextmanager
    def spending(self, stage: Stage) -> Iterator[None]:
        """Books the time of the block on a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.waits[stage] += time.perf_counter() - started

    def drawing(self, items: Iterable[Item], stage: Stage) -> Iterator[Item]:
        """The items until the run is interrupted; the time to get each is booked on a stage."""
        iterator = iter(items)
        while not self.interrupted:
            with self.spending(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    @contextmanager
    def running(self) -> Iterator[None]:
        """Books the whole run; a signal meanwhile takes effect when the block is over."""
        started = time.perf_counter()
        try:
            with held_interrupts() as self._interrupts:
                yield
        finally:
            self.seconds += time.perf_counter() - started

    @property
    def interrupted(self) -> bool:
        """Whether a signal or another process asks the run to end after what is in flight."""
        return self._interrupts.signal is not None or self.stopped()

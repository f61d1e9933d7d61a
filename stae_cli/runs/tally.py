"""What a run did: counts, failures, sizes, and where its time went."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from stae_cli.errors import InputError, StaeError
from stae_cli.interrupts import Interrupts, held_interrupts
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
class Tally:
    """What became of one part of a run that another process did; small, and can be pickled.

    `manifest` holds lines for the run's manifest; `error` is what ended the part before its time.
    """

    done: int
    skipped: int
    problems: Sequence[Problem]
    pixels: int
    bytes_written: int
    waits: Mapping[Stage, float]
    manifest: bytes = b""
    error: StaeError | None = None


@dataclass
class Report:
    """Counts of inputs, and seconds that the run's own thread spent on or waiting for each stage.

    Reading and writing go on in other threads meanwhile: a stage's seconds are those in which the
    run could not go on without it. Of a `strict` run the first failure is the end. `stopped` says
    whether someone else asks for an end.
    """

    advance: Callable[[int], None]
    share: Share = field(default_factory=Share)
    strict: bool = False
    stopped: Callable[[], bool] = lambda: False
    done: int = 0
    skipped: int = 0
    problems: list[Problem] = field(default_factory=list)
    pixels: int = 0
    bytes_written: int = 0
    seconds: float = 0.0
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
        """One output was there already."""
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
                "mend or move it, or go on past failures without `--strict`",
            )

    def tally(self, manifest: bytes = b"", error: StaeError | None = None) -> Tally:
        """The counts so far, for another process's `add`."""
        return Tally(
            self.done, self.skipped, self.problems, self.pixels, self.bytes_written, self.waits,
            manifest, error,
        )  # fmt: skip

    def add(self, tally: Tally) -> None:
        """Counts what another process did.

        Raises:
            StaeError: what ended it.
        """
        self.done += tally.done
        self.skipped += tally.skipped
        self.problems += tally.problems
        self.pixels += tally.pixels
        self.bytes_written += tally.bytes_written
        for stage, seconds in tally.waits.items():
            self.waits[stage] += seconds
        self.advance(tally.done + tally.skipped + len(tally.problems))
        if tally.error is not None:
            raise tally.error

    def sift(self, results: Iterable[Item | Problem | None]) -> Iterator[Item]:
        """The items among results; problems and skipped ones (None) are counted."""
        for result in results:
            if self.interrupted:
                return
            if result is None:
                self.skip()
            elif isinstance(result, Problem):
                self.fail(result)
            else:
                yield result

    @contextmanager
    def spending(self, stage: Stage) -> Iterator[None]:
        """Books the time of the block on a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.waits[stage] += time.perf_counter() - started

    def drawing(self, items: Iterable[Item], stage: Stage) -> Iterator[Item]:
        """The items, the time to get each booked on a stage; none any more once interrupted."""
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
        """Books the whole run; a signal meanwhile takes its course when the block is over."""
        started = time.perf_counter()
        try:
            with held_interrupts() as self._interrupts:
                yield
        finally:
            self.seconds += time.perf_counter() - started

    @property
    def interrupted(self) -> bool:
        """Whether a signal or someone else asks the run to end after what is in flight."""
        return self._interrupts.signal is not None or self.stopped()

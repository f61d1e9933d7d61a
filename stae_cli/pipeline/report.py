"""What a run did: counts, failures, sizes, and where its time went."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from stae_cli.errors import InputError
from stae_cli.files.entries import Problem
from stae_cli.files.shares import Share
from stae_cli.interrupts import Interrupts, held_interrupts

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


@dataclass
class Report:
    """Counts of inputs, and seconds that the run's own thread spent on or waiting for each stage.

    Reading and writing go on in other threads meanwhile: a stage's seconds are those in which the
    run could not go on without it.
    """

    advance: Callable[[int], None]
    share: Share = field(default_factory=Share)
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
        """One input gave no output."""
        self.problems.append(problem)
        self.advance(1)

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
        """Whether a signal asks the run to end after what is in flight."""
        return self._interrupts.signal is not None

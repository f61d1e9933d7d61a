"""Scanning: many files read by threads, the results in order, and a signal heeded in between."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import TypeVar

from stae_cli.flow.read_ahead import Reserve, read_ahead
from stae_cli.interrupts import held_interrupts

Item = TypeVar("Item")
Result = TypeVar("Result")

READ_AHEAD_BYTES = 256 << 20


@contextmanager
def scanning(
    items: Iterable[Item], look: Callable[[Item, Reserve], Result], *, workers: int | None
) -> Iterator[Iterator[Result]]:
    """Yields an iterator of `look(item, reserve)` for every item, in order; see `read_ahead`.

    It ends early at a signal, which takes its course when the block is over.
    """
    threads = workers or os.cpu_count() or 1
    with (
        held_interrupts() as interrupts,
        closing(read_ahead(items, look, threads=threads, max_bytes=READ_AHEAD_BYTES)) as results,
    ):
        yield _until(lambda: interrupts.signal is not None, results)


def _until(stop: Callable[[], bool], results: Iterator[Result]) -> Iterator[Result]:
    for result in results:
        if stop():
            return
        yield result

"""Shuffled rounds: every task once in each, so that what else the machine does meets all alike."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from random import Random
from time import monotonic

from stae_cli.codec.device import is_memory_error
from stae_cli.errors import StaeError
from stae_cli.network.stupid_ae import SEED

FEWEST_ROUNDS = 3

Key = Hashable
Round = Mapping[Key, float]  # seconds per call


def rounds_of(tasks: Mapping[Key, Callable[[], float]], seconds: float) -> list[Round]:
    """Rounds until the next one would end past the time given; at least FEWEST_ROUNDS."""
    order, keys = Random(SEED), list(tasks)  # noqa: S311  # no secret, only an order
    rounds: list[Round] = []
    start = monotonic()
    while len(rounds) < FEWEST_ROUNDS or (monotonic() - start) * (1 + 1 / len(rounds)) < seconds:
        order.shuffle(keys)
        rounds.append({key: tasks[key]() for key in keys})
    return rounds


@contextmanager
def memory_errors(case: object) -> Iterator[None]:
    """Tells at which case the memory ran out.

    Raises:
        StaeError: it did.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_memory_error(error):
            raise
        raise StaeError(
            f"out of memory at {case}", "give a smaller `--batch` or `--size`"
        ) from error

"""Batching: packs work within a budget of patches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def pack(
    items: Iterable[Item], *, patches: Callable[[Item], int], limit: int
) -> Iterator[list[Item]]:
    """Consecutive items whose patches sum to at most `limit`; a larger one is alone."""
    held: list[Item] = []
    total = 0
    for item in items:
        size = patches(item)
        if held and total + size > limit:
            yield held
            held, total = [], 0
        held.append(item)
        total += size
    if held:
        yield held

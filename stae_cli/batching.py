"""Batching: packs work, or groups it by shape, within a budget of patches."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
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


def group(
    items: Iterable[Item],
    *,
    shape: Callable[[Item], Hashable],
    patches: Callable[[Item], int],
    limit: int,
) -> Iterator[list[Item]]:
    """Items of equal shape whose patches sum to at most `limit`; a larger one is alone.

    Items of other shapes wait for company; never more than twice the limit does, since then the
    fullest group goes as it is.
    """
    waiting: dict[Hashable, list[Item]] = {}
    sizes: dict[Hashable, int] = {}
    for item in items:
        key, size = shape(item), patches(item)
        if key in waiting and sizes[key] + size > limit:
            yield waiting.pop(key)
            del sizes[key]
        waiting.setdefault(key, []).append(item)
        sizes[key] = sizes.get(key, 0) + size
        while sum(sizes.values()) > 2 * limit:
            fullest = max(sizes, key=lambda key: sizes[key])
            del sizes[fullest]
            yield waiting.pop(fullest)
    yield from waiting.values()

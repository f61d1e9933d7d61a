"""Shift and scale of latents: one number for all channels, or one for each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any


def per_channel(values: Any, name: str, channels: int) -> tuple[float, ...]:
    """One number, or `channels` of them, as a tuple of that length.

    Args:
        values: a number; or a sequence, array or tensor with a number for each channel, which may
            have axes of size 1 besides, such as (1, C, 1, 1).
        name: of the values, in the message of the error.
        channels: how many the latents have.

    Raises:
        ValueError: something else, another count, or numbers that are not finite.
    """
    try:
        numbers = tuple(map(float, _flat(values.tolist() if hasattr(values, "tolist") else values)))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"`{name}` is not a number, or one for each channel") from error
    if len(numbers) not in (1, channels):
        raise ValueError(f"`{name}` has {len(numbers)} numbers for latents of {channels} channels")
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"`{name}` holds NaN or infinity")
    return numbers


def _flat(values: Any) -> Iterator[Any]:
    """The numbers of nested lists, of which at most one level is longer than 1."""
    if not isinstance(values, list | tuple):
        yield values
        return
    if len(values) > 1 and any(isinstance(v, list | tuple) and len(v) != 1 for v in values):
        raise ValueError("two axes")
    for value in values:
        yield from _flat(value)

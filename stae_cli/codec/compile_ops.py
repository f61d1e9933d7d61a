"""What `torch.compile` sees of a codec: two operators that it calls and does not look into.

A compiled function then computes the same numbers as a plain one, and needs no graph break. The
operators take a codec's number, since torch lets no other objects through. Inductor leaves them out
of its CUDA graphs: a codec may copy from the host, and retries when memory ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor


class Coder(Protocol):
    """What the operators need: the work, and tensors of the shapes of its results."""

    def tokens_of(self, images: Sequence[Tensor]) -> Tensor:
        """Images of any sizes to tokens (N, C)."""

    def images_of(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Latents (C, h, w) of any sizes to images (3, H, W)."""

    def empty_tokens(self, images: Sequence[Tensor]) -> Tensor:
        """Uninitialised, as large as what `tokens_of` returns."""

    def empty_images(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Uninitialised, as large as what `images_of` returns."""


_numbers = count()
_coders: WeakValueDictionary[int, Coder] = WeakValueDictionary()
_OUTSIDE_OF_GRAPHS = (torch.Tag.cudagraph_unsafe,)


def register(coder: Coder) -> int:
    """The number by which the operators find a coder, for as long as it lives."""
    number = next(_numbers)
    _coders[number] = coder
    return number


@torch.library.custom_op(
    "stae::encode",
    mutates_args=(),
    schema="(Tensor[] images, int codec) -> Tensor",
    tags=_OUTSIDE_OF_GRAPHS,
)
def encode(images: Sequence[Tensor], codec: int) -> Tensor:
    """Images of any sizes to tokens (N, C)."""
    return _coders[codec].tokens_of(images)


@encode.register_fake
def _(images: Sequence[Tensor], codec: int) -> Tensor:
    return _coders[codec].empty_tokens(images)


@torch.library.custom_op(
    "stae::decode",
    mutates_args=(),
    schema="(Tensor[] latents, int codec) -> Tensor[]",
    tags=_OUTSIDE_OF_GRAPHS,
)
def decode(latents: Sequence[Tensor], codec: int) -> list[Tensor]:
    """Latents (C, h, w) of any sizes to images (3, H, W)."""
    return _coders[codec].images_of(latents)


@decode.register_fake
def _(latents: Sequence[Tensor], codec: int) -> list[Tensor]:
    return _coders[codec].empty_images(latents)

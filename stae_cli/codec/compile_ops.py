"""What `torch.compile` sees of a codec: two operators that it calls and does not look into.

A compiled function then computes the same numbers as a plain one, and needs no graph break. The
operators take a codec's number, since torch lets no other objects through. Inductor leaves them out
of its CUDA graphs: a codec may copy from the host, and retries when memory ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from stae_cli.codec.tiling import Tiler

_numbers = count()
_tilers: WeakValueDictionary[int, Tiler] = WeakValueDictionary()
_OUTSIDE_OF_GRAPHS = (torch.Tag.cudagraph_unsafe,)


def register(tiler: Tiler) -> int:
    """The number by which the operators find a tiler, for as long as it lives."""
    number = next(_numbers)
    _tilers[number] = tiler
    return number


@torch.library.custom_op(
    "stae::encode",
    mutates_args=(),
    schema="(Tensor[] images, int codec) -> Tensor",
    tags=_OUTSIDE_OF_GRAPHS,
)
def encode(images: Sequence[Tensor], codec: int) -> Tensor:
    """Images of any sizes to tokens (N, C)."""
    return _tilers[codec].tokens_of(images)


@encode.register_fake
def _(images: Sequence[Tensor], codec: int) -> Tensor:
    return _tilers[codec].empty_tokens(images)


@torch.library.custom_op(
    "stae::decode",
    mutates_args=(),
    schema="(Tensor[] latents, int codec) -> Tensor[]",
    tags=_OUTSIDE_OF_GRAPHS,
)
def decode(latents: Sequence[Tensor], codec: int) -> list[Tensor]:
    """Latents (C, h, w) of any sizes to images (3, H, W)."""
    return _tilers[codec].images_of(latents)


@decode.register_fake
def _(latents: Sequence[Tensor], codec: int) -> list[Tensor]:
    return _tilers[codec].empty_images(latents)

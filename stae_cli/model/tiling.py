"""Tiling: cuts batches of latents into pieces that decode in bounded memory, without seams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """Latent positions along one axis, and those seen to compute them.

    What is seen reaches over real neighbours and ends at the image's border: zeros in place of
    neighbours would be wrong, since biases give them values.
    """

    start: int
    stop: int
    seen_start: int
    seen_stop: int

    @property
    def seen(self) -> slice:
        """What the decoder is given."""
        return slice(self.seen_start, self.seen_stop)

    def target(self, patch: int) -> slice:
        """The pixels of the image that the span is for."""
        return slice(self.start * patch, self.stop * patch)

    def inner(self, patch: int) -> slice:
        """The same pixels in what the decoder returns."""
        return slice((self.start - self.seen_start) * patch, (self.stop - self.seen_start) * patch)


@dataclass(frozen=True)
class Piece:
    """Some images of a batch, and one tile of each."""

    images: slice
    rows: Span
    columns: Span


def pieces(
    batch: int, height: int, width: int, *, limit: int, halo: int, alignment: int
) -> Iterator[Piece]:
    """Covers `batch` latents of (height, width) with pieces of about `limit` positions.

    Args:
        batch: how many latents.
        height: positions.
        width: positions.
        limit: positions to decode at once.
        halo: neighbours on each side that a position depends on, a multiple of `alignment`.
        alignment: tiles are cut at multiples of this.
    """
    whole = Span(0, height, 0, height), Span(0, width, 0, width)
    if height * width <= limit:
        images = limit // (height * width)
        for first in range(0, batch, images):
            yield Piece(slice(first, min(first + images, batch)), *whole)
        return
    side = max(1, (int(limit**0.5) - 2 * halo) // alignment) * alignment
    for index in range(batch):
        for rows in _spans(height, side, halo):
            for columns in _spans(width, side, halo):
                yield Piece(slice(index, index + 1), rows, columns)


def _spans(length: int, side: int, halo: int) -> Iterator[Span]:
    for start in range(0, length, side):
        stop = min(start + side, length)
        yield Span(start, stop, max(start - halo, 0), min(stop + halo, length))

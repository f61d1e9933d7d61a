"""Tiling: arranges latents of any sizes to be decoded in bounded memory, without seams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    """One latent of several, by its index, and one tile of it."""

    index: int
    rows: Span
    columns: Span

    @property
    def seen(self) -> tuple[int, int]:
        """The height and width of what the decoder is given."""
        rows, columns = self.rows, self.columns
        return rows.seen_stop - rows.seen_start, columns.seen_stop - columns.seen_start


def rounds(
    sizes: Sequence[tuple[int, int]], *, limit: int, halo: int, alignment: int
) -> Iterator[list[Piece]]:
    """Covers latents of any sizes with lists of pieces, each list to be decoded together.

    Small latents stay whole; larger ones than `limit` are cut to tiles. Within a list, pieces of
    equal size are neighbours.

    Args:
        sizes: height and width of each latent, in positions.
        limit: positions to decode at once.
        halo: neighbours on each side that a position depends on, a multiple of `alignment`.
        alignment: tiles are cut at multiples of this.
    """
    side = max(1, (int(limit**0.5) - 2 * halo) // alignment) * alignment
    held: list[Piece] = []
    total = 0
    for index, (height, width) in enumerate(sizes):
        for piece in _pieces(index, height, width, limit, side, halo):
            area = piece.seen[0] * piece.seen[1]
            if held and total + area > limit:
                yield sorted(held, key=lambda piece: piece.seen)
                held, total = [], 0
            held.append(piece)
            total += area
    if held:
        yield sorted(held, key=lambda piece: piece.seen)


def _pieces(
    index: int, height: int, width: int, limit: int, side: int, halo: int
) -> Iterator[Piece]:
    if height * width <= limit:
        yield Piece(index, Span(0, height, 0, height), Span(0, width, 0, width))
        return
    for rows in _spans(height, side, halo):
        for columns in _spans(width, side, halo):
            yield Piece(index, rows, columns)


def _spans(length: int, side: int, halo: int) -> Iterator[Span]:
    for start in range(0, length, side):
        stop = min(start + side, length)
        yield Span(start, stop, max(start - halo, 0), min(stop + halo, length))

"""Tiling: runs a form on images and latents of any sizes, in bounded memory and without seams."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from stae_cli.codec.device import plain_arithmetic, ran_out, too_little_memory
from stae_cli.codec.inference import InferenceForm
from stae_cli.codec.tensors import COLOURS, count_of, rows_of
from stae_cli.network.architecture import Architecture

LEAST_PATCHES = 256
Result = TypeVar("Result")


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

    def inner(self, pixels: Tensor, patch: int) -> Tensor:
        """Of what the decoder returns (H, W, 3), the pixels that the piece is for."""
        return pixels[self.rows.inner(patch), self.columns.inner(patch)]

    def target(self, image: Tensor, patch: int) -> Tensor:
        """The same pixels in the whole image (H, W, 3)."""
        return image[self.rows.target(patch), self.columns.target(patch)]


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
        for piece in _cut(index, height, width, limit, side, halo):
            area = piece.seen[0] * piece.seen[1]
            if held and total + area > limit:
                yield sorted(held, key=lambda piece: piece.seen)
                held, total = [], 0
            held.append(piece)
            total += area
    if held:
        yield sorted(held, key=lambda piece: piece.seen)


def _cut(index: int, height: int, width: int, limit: int, side: int, halo: int) -> Iterator[Piece]:
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


class Tiler:
    """Runs a form on one device: images in bands, large latents in tiles, small ones together.

    Args:
        form: what computes.
        architecture: of the form.
        batch_patches: patches of 8x8 pixels to decode at once; bounds the memory.

    Attributes:
        batch_patches: halved each time the device runs out of memory, and kept so.
        ran_out_of_memory: whether that has happened.
    """

    def __init__(self, form: InferenceForm, architecture: Architecture, batch_patches: int) -> None:
        self.form, self.batch_patches = form, batch_patches
        self.ran_out_of_memory = False
        self._device, self._dtype = form.place.device, form.place.dtype
        self._size, self._channels = architecture.downsample, architecture.channels
        self._units = architecture.units

    def within_memory(self, run: Callable[[], Result]) -> Result:
        """The result of `run`, tried again with half of `batch_patches` when memory ends.

        Raises:
            DeviceError: there is not even enough memory for a few patches.
        """
        while True:
            try:
                return run()
            except RuntimeError as error:
                if not ran_out(error):
                    raise
                if self.batch_patches <= LEAST_PATCHES:
                    raise too_little_memory(self._device, error) from error
                self.ran_out_of_memory = True
                self.batch_patches = max(LEAST_PATCHES, self.batch_patches // 2)

    def tokens_of(self, images: Sequence[Tensor]) -> Tensor:
        """Images or batches, in any layout that `rows_of` takes, encoded as one pack -> (N, C).

        Bytes and floats are encoded apart: neither shows what it is encoded with.
        """
        layouts = [rows_of(image, self._size) for image in images]
        return self.form.conducted(lambda: self.within_memory(lambda: self._tokens(layouts)))

    def images_of(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Latents (C, h, w) of any sizes -> images (3, H, W), clamped."""

        def run() -> list[Tensor]:
            images = [self._canvas(latent) for latent in latents]
            self._paint(latents, images)
            return [image.permute(2, 0, 1) for image in images]

        return self.form.conducted(lambda: self.within_memory(run))

    def batch_of(self, latents: Tensor) -> Tensor:
        """A batch of latents (B, C, h, w) -> (B, 3, H, W), clamped."""

        def run() -> Tensor:
            images = self._canvas(latents)
            self._paint(list(latents), list(images))
            return images.permute(0, 3, 1, 2)

        return self.form.conducted(lambda: self.within_memory(run))

    def levels_of(
        self, latents: Sequence[Tensor]
    ) -> Iterator[tuple[list[Piece], list[Tensor], Tensor]]:
        """Latents (C, h, w) -> for some pieces at a time their uint8 pixels and which are finite.

        The latter is (N,), `positions_each` of the form for each position.
        """
        for pieces, seen in self.pieces(latents):
            with plain_arithmetic(self._device):
                levels, finite = self.form.conducted(partial(self.form.decode_levels, seen))
            yield pieces, levels, finite

    def empty_tokens(self, images: Sequence[Tensor]) -> Tensor:
        """Uninitialised, as large as what `tokens_of` returns."""
        rows = sum(self._positions_of(rows_of(image, self._size)) for image in images)
        return torch.empty(rows, self._channels, dtype=self._dtype, device=self._device)

    def empty_images(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Uninitialised, as large as what `images_of` returns."""
        return [self._canvas(latent).permute(2, 0, 1) for latent in latents]

    def grid_of(self, rows: Tensor) -> tuple[int, int]:
        """The height and width of the latent of an image (H, W, 3), or of each of a batch."""
        return rows.shape[-3] // self._size, rows.shape[-2] // self._size

    def bands(self, rows: Tensor) -> Iterator[Tensor]:
        """Images on the device: of a batch as many as are computed at once, large ones in bands.

        So nothing large is there twice.
        """
        height, width = self.grid_of(rows)
        if self._positions_of(rows) <= self._at_once:
            yield rows.to(self._device)
        elif rows.ndim == 4:
            for part in rows.split(max(1, self._at_once // (height * width))):
                yield from self.bands(part if len(part) > 1 else part[0])
        else:
            for part in rows.split(self._size * max(1, self._at_once // width)):
                yield part.to(self._device)

    def pieces(self, latents: Sequence[Tensor]) -> Iterator[tuple[list[Piece], list[Tensor]]]:
        """Pieces of latents (C, h, w), and (h, w, C) of what the decoder is given for each."""
        sizes = [(latent.shape[1], latent.shape[2]) for latent in latents]
        halo, alignment = self.form.halo, self.form.alignment
        for pieces in rounds(sizes, limit=self._at_once, halo=halo, alignment=alignment):
            seen = [latents[p.index][:, p.rows.seen, p.columns.seen] for p in pieces]
            yield pieces, [part.to(self._device, self._dtype).permute(1, 2, 0) for part in seen]

    @property
    def _at_once(self) -> int:
        """Latent positions that stand for as many pixels as `batch_patches`."""
        return max(1, self.batch_patches // self._units)

    def _positions_of(self, rows: Tensor) -> int:
        """All latent positions of an image, or of a batch."""
        return count_of(rows) * math.prod(self.grid_of(rows))

    def _tokens(self, layouts: Sequence[Tensor]) -> Tensor:
        packs: dict[torch.dtype, Tensor] = {}
        for kind in dict.fromkeys(rows.dtype for rows in layouts):
            some = [rows for rows in layouts if rows.dtype == kind]
            bands = (band for rows in some for band in self.bands(rows))
            with plain_arithmetic(self._device):
                packs[kind] = self.form.encode(bands, sum(map(self._positions_of, some)))
        if len(packs) == 1:
            return packs[layouts[0].dtype]
        parts = []
        for rows in layouts:
            part, packs[rows.dtype] = packs[rows.dtype].tensor_split([self._positions_of(rows)])
            parts.append(part)
        return torch.cat(parts)

    def _paint(self, latents: Sequence[Tensor], images: Sequence[Tensor]) -> None:
        """(C, h, w) on any device into (H, W, 3), clamped."""
        for pieces, seen in self.pieces(latents):
            with plain_arithmetic(self._device):
                decoded = self.form.decode(seen)
            for piece, pixels in zip(pieces, decoded, strict=True):
                target = piece.target(images[piece.index], self._size)
                torch.clamp(piece.inner(pixels, self._size), -1, 1, out=target)

    def _canvas(self, latents: Tensor) -> Tensor:
        """Uninitialised images (..., H, W, 3) for latents (..., C, h, w)."""
        height, width = latents.shape[-2:]
        shape = (*latents.shape[:-3], height * self._size, width * self._size, COLOURS)
        return torch.empty(shape, dtype=self._dtype, device=self._device)

"""The inference form: the reference network's function, rearranged for speed.

Activations are token matrices (N, channels), one row per patch, so that every 1x1 conv is one
matrix product and pictures of any sizes share it. Built from a reference model: norm weights,
pixel scaling and the head's last layer are folded into their neighbours in float64. Rows pass in
chunks that stay in the cache from one layer to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from math import gcd
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor

from stae_cli.codec.cpu.affine import Placement
from stae_cli.codec.cpu.layers import Head, Layer, Size, Trunk, through
from stae_cli.codec.cpu.parts import LEAST_ROWS, Parts
from stae_cli.network.architecture import UNIT, Stage
from stae_cli.network.stupid_ae import Decoder, Encoder, ShuffleDecoder, StupidAE

# Rows that go through the layers at once, each a patch of 8x8 pixels. Rows that stand for larger
# ones come in quarters of that: pictures have fewer of them, and chunks are filled up.
Result = TypeVar("Result")

ROWS = {"cpu": 512, "cuda": 16384, "mps": 4096}
QUARTER = 4
ALIGNMENT = 256  # bytes, of whatever torch allocates


class Backend(Protocol):
    """How a network is computed on one device in one dtype: chosen once, where a form is built."""

    @property
    def place(self) -> Placement:
        """The device and the dtype; norms and accumulations stay float32."""

    def parts(self, rows: int) -> Parts:
        """How rows are divided, at most so many at once."""

    def cut(self, images: Tensor, size: int) -> Tensor:
        """Images (H, W, 3) or (B, H, W, 3) -> patches (n, size^2 * 3) by row, column and colour.

        Images are uint8 or float in [-1, 1]; patches are what the pixel encoder takes.
        """

    def fold_encoder(self, encoder: Encoder) -> Sequence[Layer]:
        """Layers from patches, as `cut` gives them, to latents (n, C)."""

    def fold_cell_encoder(self, encoder: Encoder) -> Sequence[Layer]:
        """Layers from cells (n, patch^2 * C) of the first stage's latents to latents (n, C)."""

    def fold_decoder(
        self, decoder: Decoder | ShuffleDecoder, stage: Stage, *, parts: Parts
    ) -> tuple[Trunk, Head]:
        """The trunk, whose rows are divided in such parts, and the head."""

    def fold_cell_decoder(
        self, decoder: ShuffleDecoder, stage: Stage, *, parts: Parts
    ) -> tuple[Trunk, Layer]:
        """The trunk, and the layer to cells (n, patch^2 * C) of the first stage's latents."""


@dataclass(frozen=True)
class LinearEncoder:
    """One stage's encoder on rows. It never mixes patches, so pictures of any sizes share a batch.

    Parts are filled up: to all of their rows, so that a row meets the same kernels whatever it is
    packed with, or to whole vectors where the kernels are the same for any number of rows. Its
    latent then has the same bytes alone and in company.
    """

    layers: Sequence[Layer]  # from cells (n, values), ordered by (row, col, channel)
    parts: Parts

    def __call__(self, pieces: Iterable[Tensor], total: int | None) -> Tensor:
        """The cells (n, values) of all pieces in order, if known `total` -> latents (N, C)."""
        portions = _portions(pieces, self.parts.rows_of(total) if total else self.parts.rows)
        return torch.cat(self.parts.each(self._latents, portions))

    def _latents(self, cells: Tensor) -> Tensor:
        count = len(cells)
        if missing := -count % (LEAST_ROWS if self.parts.fewer else self.parts.rows):
            cells = torch.cat((cells, cells.new_zeros(missing, cells.shape[1])))
        if cells.is_cuda and cells.data_ptr() % ALIGNMENT:  # a choice of kernel may depend on it
            cells = cells.clone()
        return through(self.layers, cells)[:count]


class SecondStage:
    """The second stage of a model; its rows are cells of `patch` x `patch` latents."""

    def __init__(self, model: StupidAE, backend: Backend, parts: Parts) -> None:
        stage = model.architecture.stages[1]
        self.patch, self._values = stage.patch, stage.inputs * stage.patch**2
        layers = backend.fold_cell_encoder(cast(Encoder, model.encoder[1]))
        self.encoder = LinearEncoder(layers, parts)
        decoder = cast(ShuffleDecoder, model.decoder[1])
        self._trunk, self._painter = backend.fold_cell_decoder(decoder, stage, parts=parts)
        self._parts = parts

    def cut(self, patches: Tensor, size: int) -> Tensor:
        """Patches (n, (cell * size)^2 * 3) to those of the first stage, (n * cell^2, size^2 * 3).

        The parts of a patch follow each other row by row; so do the pixels of a part.
        """
        grid = patches.unflatten(1, (self.patch, size, self.patch, size * 3))
        return grid.transpose(2, 3).flatten(3).flatten(0, 2)

    def encode(self, rows: Tensor) -> Tensor:
        """First latents (n * cell^2, C) in the order of `cut` -> (n, channels)."""
        cells = rows.view(-1, self._values)
        return self.encoder([cells], len(cells))

    def decode(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Latents (h, w, channels) of any sizes -> first latents (cell * h, cell * w, C)."""
        features = self._trunk(latents)
        some = (features[part] for part in self._parts.slices(len(features)))
        rows = torch.cat(self._parts.each(self._painter, some))
        sizes = _sizes(latents)
        parts = rows.split([height * width for height, width in sizes])
        return [
            part.view(height, width, self.patch, self.patch, -1)
            .transpose(1, 2)
            .reshape(height * self.patch, width * self.patch, -1)
            for part, (height, width) in zip(parts, sizes, strict=True)
        ]


class InferenceForm:
    """A reference model's function on one device in one dtype, up to rounding.

    Args:
        model: the weights; they are copied, later changes to the model do not show.
        backend: how and where they are computed.
    """

    def __init__(self, model: StupidAE, backend: Backend) -> None:
        architecture, self._backend = model.architecture, backend
        self.place = backend.place
        first, *others = architecture.stages
        rows = ROWS[self.place.device.type]
        parts, few = backend.parts(rows), backend.parts(rows // QUARTER)
        self.patch = first.patch
        self._parts = parts if first.patch <= UNIT else few
        layers = backend.fold_encoder(cast(Encoder, model.encoder[0]))
        self._encoder = LinearEncoder(layers, self._parts)
        decoder = cast(Decoder | ShuffleDecoder, model.decoder[0])
        self._trunk, self._head = backend.fold_decoder(decoder, first, parts=parts)
        self._second = SecondStage(model, backend, few) if others else None
        # In latent positions of the whole network.
        cell = self._second.patch if self._second else 1
        self.alignment = self._trunk.alignment // gcd(self._trunk.alignment, cell)
        self.halo = -(-architecture.halo // self.alignment) * self.alignment

    def encoding_at_once(self, rows: int) -> InferenceForm:
        """The same form, sharing its weights, that encodes so many rows at once."""
        other, parts = copy(self), replace(self._parts, rows=rows)
        other._encoder = replace(self._encoder, parts=parts)
        if self._second is not None:
            other._second = copy(self._second)
            other._second.encoder = replace(self._second.encoder, parts=parts)
        return other

    def encode(self, images: Iterable[Tensor], total: int | None = None) -> Tensor:
        """Images (H, W, 3) or (B, H, W, 3), uint8 or float in [-1, 1], with sides that P divides.

        P pixels on a side are one latent position of the whole network. Where it is known how many
        there are in `total`, even a few occupy all threads.

        Returns:
            Latents (N, C) of all positions in order.
        """
        some = (part for image in images for part in self._some_at_once(image))
        count = total and total * self.positions_each
        latents = self._encoder(map(self._cut, some), count)
        return latents if self._second is None else self._second.encode(latents)

    def _some_at_once(self, images: Tensor) -> Sequence[Tensor]:
        """Of images (B, H, W, 3) as many as the encoder takes at once; an image (H, W, 3) whole."""
        if images.ndim == 3:
            return [images]
        patches = images.shape[1] * images.shape[2] // self.patch**2
        return images.split(max(1, self._encoder.parts.rows // patches))

    def _cut(self, image: Tensor) -> Tensor:
        """The first stage's patches (n, patch^2 * 3) of images, in the encoder's order."""
        if self._second is None:
            return self._backend.cut(image, self.patch)
        whole = self._backend.cut(image, self.patch * self._second.patch)
        return self._second.cut(whole, self.patch)

    def decode(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Latents (h, w, C) of any sizes -> (h * P, w * P, 3) each, unclamped.

        They are about [-1, 1]. Neighbours of equal size in the list are computed fastest.
        """
        grids = self._first_latents(latents)
        pixels, _ = self._painted(grids, levels=False)
        return self._head.images(pixels, _sizes(grids))

    def decode_levels(self, latents: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Latents (h, w, C) of any sizes -> uint8 pixels of each, rounded to nearest.

        Also returns of all positions in order, `positions_each` of the first stage for each one
        given, whether their pixels were finite before they were rounded.
        """
        grids = self._first_latents(latents)
        levels, finite = self._painted(grids, levels=True)
        assert finite is not None
        return self._head.images(levels, _sizes(grids)), finite

    def conducted(self, work: Callable[[], Result]) -> Result:
        """What `work` returns, which calls this form: where it costs those least that compute."""
        return self._parts.conducted(work)

    @property
    def positions_each(self) -> int:
        """Positions of the first stage for one of the whole network."""
        return 1 if self._second is None else self._second.patch**2

    def _painted(self, grids: Sequence[Tensor], *, levels: bool) -> tuple[Tensor, Tensor | None]:
        """Pixels as the head gives them, and with `levels` (N,) whether each patch was finite."""
        features = self._trunk(grids)
        return self._head.paint(features, _sizes(grids), levels=levels, parts=self._parts)

    def _first_latents(self, latents: Sequence[Tensor]) -> Sequence[Tensor]:
        """The first stage's latents, (h, w, C) each."""
        return latents if self._second is None else self._second.decode(latents)


def _sizes(grids: Sequence[Tensor]) -> list[Size]:
    return [(grid.shape[0], grid.shape[1]) for grid in grids]


def _portions(pieces: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The rows of all pieces in order, `size` at a time, the last time fewer."""
    held: list[Tensor] = []
    count = 0
    for piece in pieces:
        rest = piece
        while len(rest):
            part, rest = rest[: size - count], rest[size - count :]
            held.append(part)
            count += len(part)
            if count == size:
                yield _joined(held)
                held, count = [], 0
    if held:
        yield _joined(held)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))

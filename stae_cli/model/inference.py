"""The inference form: the reference network's function, rearranged for speed.

Activations are token matrices (N, channels), one row per patch, so that every 1x1 conv is one
matrix product and pictures of any sizes share it. Built from a reference model: norm weights,
pixel scaling and the head's last layer are folded into their neighbours in float64. Rows pass in
chunks that stay in the cache from one layer to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import cast

import torch
from torch import Tensor

from stae_cli.model.affine import Affine, Placement
from stae_cli.model.folding import (
    fold_geglu,
    fold_head,
    fold_pair,
    fold_pixel_layer,
    fold_projection,
)
from stae_cli.model.layers import Conv, normed
from stae_cli.model.stupid_ae import (
    Decoder,
    Encoder,
    GegluBlock,
    SpatialBlock,
    StupidAE,
)
from stae_cli.model.winograd import TILE

# Rows that go through the encoder at once. Always exactly this many (the last chunk is filled
# up), so that a row meets the same kernels whatever it is packed with: its latent then has the
# same bytes alone and in company.
ENCODE_ROWS = {"cpu": 512, "cuda": 16384, "mps": 4096}
DECODE_ROWS = {"cpu": 512, "cuda": 16384, "mps": 4096}


class InferenceForm:
    """A reference model's function on one device in one dtype, up to rounding.

    Args:
        model: the weights; they are copied, later changes to the model do not show.
        device: where to run.
        dtype: of weights and activations; norms and accumulations stay float32.
    """

    def __init__(self, model: StupidAE, *, device: torch.device, dtype: torch.dtype) -> None:
        sizes = model.architecture
        encoder, decoder = cast(Encoder, model.encoder[0]), cast(Decoder, model.decoder[0])
        place = Placement(device, dtype)
        self.dtype = dtype
        self.patch = sizes.patch
        self.encode_rows = ENCODE_ROWS[device.type]
        self.decode_rows = DECODE_ROWS[device.type]
        self._embed = fold_pixel_layer(encoder, place)
        self._encoder_blocks = [fold_geglu(cast(GegluBlock, b), place) for b in encoder.blocks]
        self._to_latent = fold_projection(encoder.out, place)
        self._from_latent = fold_projection(decoder.conv_in, place)
        blocks = list(decoder.blocks)
        self._pairs = [
            fold_pair(cast(SpatialBlock, spatial), cast(GegluBlock, geglu), place)
            for spatial, geglu in zip(blocks[::2], blocks[1::2], strict=True)
        ]
        self._head = fold_head(decoder, place)
        # Tiles that are cut at multiples of Winograd's then compute the same numbers as the whole.
        self.alignment = 1 if isinstance(self._pairs[0].mixer, Conv) else TILE
        self.halo = -(-sizes.halo // self.alignment) * self.alignment

    def encode(self, patches: Iterable[Tensor]) -> Tensor:
        """Patches (n, patch * patch * 3), uint8 or float in [-1, 1], in any portions.

        Returns:
            Latents (N, C) of all of them in order.
        """
        chunks = _portions(patches, self.encode_rows)
        return torch.cat([self._encode_chunk(chunk) for chunk in chunks])

    def _encode_chunk(self, patches: Tensor) -> Tensor:
        count = len(patches)
        patches = self._centred(patches)
        if count < self.encode_rows:
            filler = patches.new_zeros(self.encode_rows - count, patches.shape[1])
            patches = torch.cat((patches, filler))
        rows = self._embed(patches)
        for block in self._encoder_blocks:
            rows = block(rows)
        inner, outer = self._to_latent
        return outer(inner.gelu(rows, "none"))[:count]

    def _centred(self, patches: Tensor) -> Tensor:
        """uint8 or float in [-1, 1] -> (pixel - 128) / 128, exact for uint8 in every dtype."""
        if patches.dtype == torch.uint8:
            return patches.to(self.dtype).sub_(128).div_(128)
        return patches.float().mul(127.5 / 128).sub_(0.5 / 128).to(self.dtype)

    def decode(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Latents (h, w, C) of any sizes -> (h * patch, w * patch, 3) each, unclamped.

        They are about [-1, 1]. Neighbours of equal size in the list are computed fastest.
        """
        rows = self._features(latents)
        pixels = rows.new_empty(len(rows), self.patch**2, 3)
        for part in self._slices(rows):
            pixels[part] = self._head(rows[part]).mT
        return self._as_images(pixels, latents)

    def decode_levels(self, latents: Sequence[Tensor]) -> tuple[list[Tensor], list[bool]]:
        """Latents (h, w, C) of any sizes -> uint8 pixels of each, rounded to nearest.

        Also returns whether each was finite before it was rounded.
        """
        rows = self._features(latents)
        levels = rows.new_empty(len(rows), self.patch**2, 3, dtype=torch.uint8)
        finite = rows.new_empty(len(rows), dtype=torch.bool)
        for part in self._slices(rows):
            pixels = self._head(rows[part])
            finite[part] = pixels.isfinite().flatten(1).all(1)
            levels[part] = pixels.float().add_(1).mul_(127.5).round_().clamp_(0, 255).mT
        counts = [len(latent) * latent.shape[1] for latent in latents]
        good = torch.stack([part.all() for part in finite.split(counts)])
        return self._as_images(levels, latents), good.tolist()

    def _features(self, latents: Sequence[Tensor]) -> Tensor:
        """Latents (h, w, C) -> what the head paints from, (N, width) for all their positions."""
        inner, outer = self._from_latent
        rows = torch.cat([latent.flatten(0, 1) for latent in latents])
        grid, hidden = self._empty(len(rows), outer), self._empty(len(rows), outer)
        grids, hiddens = _by_size(grid, latents), _by_size(hidden, latents)
        for part in self._slices(rows):
            grid[part] = outer(inner.gelu(rows[part], "none"))
            hidden[part] = self._pairs[0].inner.gelu(normed(grid[part]), "tanh")
        for pair, following in zip(self._pairs, [*self._pairs[1:], None], strict=True):
            pair.mixer.add_to(grids, hiddens)
            for part in self._slices(rows):
                grid[part] = pair.geglu(grid[part])
                if following is not None:
                    hidden[part] = following.inner.gelu(normed(grid[part]), "tanh")
        return grid

    def _empty(self, rows: int, layer: Affine) -> Tensor:
        return torch.empty(rows, len(layer.bias), dtype=self.dtype, device=layer.bias.device)

    def _slices(self, rows: Tensor) -> Iterator[slice]:
        for first in range(0, len(rows), self.decode_rows):
            yield slice(first, first + self.decode_rows)

    def _as_images(self, pixels: Tensor, latents: Sequence[Tensor]) -> list[Tensor]:
        """Pixels (N, patch^2, 3) of all positions to images (h * patch, w * patch, 3)."""
        side = self.patch
        sizes = [(latent.shape[0], latent.shape[1]) for latent in latents]
        parts = pixels.split([height * width for height, width in sizes])
        return [
            part.view(height, width, side, side, 3)
            .transpose(1, 2)
            .reshape(height * side, width * side, 3)
            for part, (height, width) in zip(parts, sizes, strict=True)
        ]


def _by_size(rows: Tensor, latents: Sequence[Tensor]) -> list[Tensor]:
    """Views (B, h, w, width) of the rows, neighbours of equal size as one."""
    views: list[Tensor] = []
    first = 0
    for (height, width), equal in groupby(latents, key=lambda latent: latent.shape[:2]):
        count = len(list(equal))
        last = first + count * height * width
        views.append(rows[first:last].view(count, height, width, -1))
        first = last
    return views


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

"""The inference form: the reference network's function, rearranged for speed.

Activations are token matrices (N, channels), one row per patch, so that every 1x1 conv is one
matrix product and pictures of any sizes share it. Built from a reference model: norm weights,
pixel scaling and the head's last layer are folded into their neighbours in float64. Rows pass in
chunks that stay in the cache from one layer to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import gcd
from typing import cast

import torch
from torch import Tensor

from stae_cli.codec.cpu.affine import Placement
from stae_cli.codec.cpu.encoder import fold_encoder
from stae_cli.codec.cpu.folding import fold_head, fold_pixel_layer
from stae_cli.codec.cpu.layers import Size, centred, patches_of
from stae_cli.codec.cpu.second_stage import SecondForm
from stae_cli.codec.cpu.trunk import fold_trunk
from stae_cli.network.architecture import UNIT
from stae_cli.network.stupid_ae import Decoder, Encoder, ShuffleDecoder, StupidAE

# Rows that go through the layers at once, each a patch of 8x8 pixels. Rows that stand for larger
# ones come in quarters of that: pictures have fewer of them, and chunks are filled up.
ROWS = {"cpu": 512, "cuda": 16384, "mps": 4096}
QUARTER = 4


class InferenceForm:
    """A reference model's function on one device in one dtype, up to rounding.

    Args:
        model: the weights; they are copied, later changes to the model do not show.
        device: where to run.
        dtype: of weights and activations; norms and accumulations stay float32.
        fused: with Triton kernels between the matrix products; `model.trial` says where they run.
    """

    def __init__(
        self,
        model: StupidAE,
        *,
        device: torch.device,
        dtype: torch.dtype,
        fused: bool = False,
    ) -> None:
        architecture, place = model.architecture, Placement(device, dtype, fused)
        first, *others = architecture.stages
        encoder = cast(Encoder, model.encoder[0])
        decoder = cast(Decoder | ShuffleDecoder, model.decoder[0])
        self.dtype = dtype
        self.patch = first.patch
        rows = ROWS[device.type]
        self._rows = rows if first.patch <= UNIT else rows // QUARTER
        embed = fold_pixel_layer(encoder, place)
        self._cuts_in_one = fused and not others
        before = [] if self._cuts_in_one else [partial(_centring(fused), dtype)]
        self._encoder = fold_encoder(encoder, embed, place, rows=self._rows, before=before)
        self._trunk = fold_trunk(decoder, first, place, rows=rows)
        self._head = fold_head(decoder, place, self._trunk.lacking)
        self._second = SecondForm(model, place, rows=rows // QUARTER) if others else None
        # In latent positions of the whole network.
        cell = self._second.patch if self._second else 1
        self.alignment = self._trunk.alignment // gcd(self._trunk.alignment, cell)
        self.halo = -(-architecture.halo // self.alignment) * self.alignment

    def encode(self, images: Iterable[Tensor]) -> Tensor:
        """Images (H, W, 3) or (B, H, W, 3), uint8 or float in [-1, 1], with sides that P divides.

        P pixels on a side are one latent position of the whole network.

        Returns:
            Latents (N, C) of all positions in order.
        """
        encoder = self._encoder
        some = (part for image in images for part in self._some_at_once(image))
        rows = _portions(map(self._cut, some), encoder.rows)
        latents = torch.cat([encoder(portion) for portion in rows])
        return latents if self._second is None else self._second.encode(latents)

    def _some_at_once(self, images: Tensor) -> Sequence[Tensor]:
        """Of images (B, H, W, 3) as many as the encoder takes at once; an image (H, W, 3) whole."""
        if images.ndim == 3:
            return [images]
        patches = images.shape[1] * images.shape[2] // self.patch**2
        return images.split(max(1, self._encoder.rows // patches))

    def _cut(self, image: Tensor) -> Tensor:
        """The first stage's patches (n, patch^2 * 3) of images, in the encoder's order."""
        if self._cuts_in_one:
            from stae_cli.codec.cuda import kernels

            return kernels.cut(image, self.patch, self.dtype)
        if self._second is None:
            return patches_of(image, self.patch)
        return self._second.cut(patches_of(image, self.patch * self._second.patch), self.patch)

    def decode(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Latents (h, w, C) of any sizes -> (h * P, w * P, 3) each, unclamped.

        They are about [-1, 1]. Neighbours of equal size in the list are computed fastest.
        """
        grids = self._first_latents(latents)
        pixels = self._painted(grids, levels=False)[0]
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

    @property
    def positions_each(self) -> int:
        """Positions of the first stage for one of the whole network."""
        return 1 if self._second is None else self._second.patch**2

    def _painted(self, grids: Sequence[Tensor], *, levels: bool) -> tuple[Tensor, Tensor | None]:
        """Pixels as the head gives them, and with `levels` (N,) whether each patch was finite."""
        features = self._trunk(grids)
        return self._head.paint(features, _sizes(grids), levels=levels, at_once=self._rows)

    def _first_latents(self, latents: Sequence[Tensor]) -> Sequence[Tensor]:
        """The first stage's latents, (h, w, C) each."""
        return latents if self._second is None else self._second.decode(latents)


def _sizes(grids: Sequence[Tensor]) -> list[Size]:
    return [(grid.shape[0], grid.shape[1]) for grid in grids]


def _centring(fused: bool) -> Callable[[torch.dtype, Tensor], Tensor]:
    if fused:
        from stae_cli.codec.cuda import kernels

        return kernels.centred
    return centred


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

"""The linear encoder: patches of pictures of any sizes, as rows, through plain matrix products.

The encoder never mixes patches, so it needs no grid: pictures of any aspect ratios share a batch
without padding or buckets. What the published convolutions compute is exactly this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from stae_cli.codec.cpu.affine import Affine, Placement
from stae_cli.codec.cpu.folding import fold_geglus, fold_projection
from stae_cli.codec.cpu.layers import Layer
from stae_cli.codec.cuda.replay import Replay
from stae_cli.network.stupid_ae import Encoder, GegluBlock

# Parts of a full number of rows that are computed alone on CUDA, where they suffice. All but the
# fewest rows are filled up to less than twice as many.
PARTS = (16, 8, 4, 2)
ALIGNMENT = 256  # bytes, of whatever torch allocates


class LinearEncoder:
    """One stage's encoder on rows.

    Always exactly `rows` at once (fewer are filled up), so that a row meets the same kernels
    whatever it is packed with: its latent then has the same bytes alone and in company. On CUDA
    fewer are computed alone where that was seen to give the same bytes.

    Args:
        layers: from cells (n, values), ordered by (row, col, channel), to latents (n, C).
        rows: how many at once.
        any_count: whether the layers compute any number of rows alike, so that none are filled up.
    """

    def __init__(self, layers: Sequence[Layer], rows: int, *, any_count: bool = False) -> None:
        self.rows = rows
        self.layers = layers
        self._any_count = any_count
        self._sizes = [rows]
        self._replay = Replay()

    def __call__(self, cells: Tensor) -> Tensor:
        """At most `rows` cells (n, values) -> latents (n, C)."""
        count = len(cells)
        size = count if self._any_count else next(each for each in self._sizes if count <= each)
        if count < size:
            filler = cells.new_zeros(size - count, cells.shape[1])
            cells = torch.cat((cells, filler))
        if not cells.is_cuda:
            return _through(self.layers, cells)[:count]
        if cells.data_ptr() % ALIGNMENT:  # the library's choice of a kernel might depend on it
            cells = cells.clone()
        layers = self.layers  # a recording that kept this encoder would be kept by it
        (latents,) = self._replay(lambda given: [_through(layers, given)], cells.contiguous())
        return latents[:count]

    def forget(self) -> None:
        """Gives back the memory of what was recorded."""
        self._replay.clear()

    def allow_parts(self, example: Tensor) -> None:
        """Tries cells (rows, values), and allows for fewer rows those sizes that change no byte."""
        whole = _through(self.layers, example)
        sizes = [self.rows // part for part in PARTS]
        fitting = [size for size in sizes if self._is_same(example, whole, size)]
        self._sizes = [*fitting, self.rows]

    def _is_same(self, example: Tensor, whole: Tensor, size: int) -> bool:
        """Whether so many rows alone, from the beginning, middle and end, have the same bytes."""
        for start in (0, (self.rows - size) // 2, self.rows - size):
            part = slice(start, start + size)
            if not torch.equal(_through(self.layers, example[part]), whole[part]):
                return False
        return True


def _through(layers: Sequence[Layer], rows: Tensor) -> Tensor:
    for layer in layers:
        rows = layer(rows)
    return rows


def fold_encoder(
    encoder: Encoder, embed: Affine, place: Placement, *, rows: int, before: Sequence[Layer] = ()
) -> LinearEncoder:
    """A reference encoder behind its first layer, which is folded already.

    Args:
        encoder: the reference.
        embed: its first layer.
        place: where weights go.
        rows: how many at once.
        before: what cells go through before the first layer.
    """
    listed = [cast(GegluBlock, block) for block in encoder.blocks]
    layers: list[Layer]
    if place.multiplied:
        from stae_cli.codec.cuda.multiplied import fits, fold_encoder_products

        channels = cast(torch.nn.Conv2d, encoder.out.model[2]).out_channels
        if fits(len(embed.bias), embed.weight.shape[1], channels):
            layers = [*before, fold_encoder_products(embed, listed, encoder.out, place)]
            return LinearEncoder(layers, rows, any_count=True)
    blocks = fold_geglus(listed, place)
    out = fold_projection(encoder.out, place, blocks.lacking)
    layers = [*before, embed, *blocks.layers, out]
    folded = LinearEncoder(layers, rows)
    if place.device.type == "cuda":
        values = embed.weight.shape[1]
        generator = torch.Generator(place.device).manual_seed(0)
        levels = torch.randint(0, 256, (rows, values), generator=generator, device=place.device)
        example = levels.to(torch.uint8) if before else levels.to(place.dtype).sub_(128).div_(128)
        folded.allow_parts(example)
    return folded

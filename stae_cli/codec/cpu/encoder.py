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
from stae_cli.network.stupid_ae import Encoder, GegluBlock

ALIGNMENT = 256  # bytes, of whatever torch allocates


class LinearEncoder:
    """One stage's encoder on rows.

    Always exactly `rows` at once (fewer are filled up), so that a row meets the same kernels
    whatever it is packed with: its latent then has the same bytes alone and in company.

    Args:
        layers: from cells (n, values), ordered by (row, col, channel), to latents (n, C).
        rows: how many at once.
    """

    def __init__(self, layers: Sequence[Layer], rows: int) -> None:
        self.rows = rows
        self.layers = layers

    def __call__(self, cells: Tensor) -> Tensor:
        """At most `rows` cells (n, values) -> latents (n, C)."""
        count = len(cells)
        if count < self.rows:
            filler = cells.new_zeros(self.rows - count, cells.shape[1])
            cells = torch.cat((cells, filler))
        if cells.is_cuda and cells.data_ptr() % ALIGNMENT:  # on which a choice of kernel may depend
            cells = cells.clone()
        for layer in self.layers:
            cells = layer(cells)
        return cells[:count]


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
    blocks = fold_geglus(listed, place)
    out = fold_projection(encoder.out, place, blocks.lacking)
    return LinearEncoder([*before, embed, *blocks.layers, out], rows)

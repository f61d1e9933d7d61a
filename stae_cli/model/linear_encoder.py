"""The linear encoder: patches of pictures of any sizes, as rows, through plain matrix products.

The encoder never mixes patches, so it needs no grid: pictures of any aspect ratios share a batch
without padding or buckets. What the published convolutions compute is exactly this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from stae_cli.model.affine import Affine, Placement
from stae_cli.model.folding import fold_geglu, fold_projection
from stae_cli.model.layers import Geglu, Project
from stae_cli.model.stupid_ae import Encoder, GegluBlock


@dataclass(frozen=True)
class LinearEncoder:
    """One stage's encoder on rows.

    Always exactly `rows` at once (fewer are filled up), so that a row meets the same kernels
    whatever it is packed with: its latent then has the same bytes alone and in company.
    """

    embed: Affine
    blocks: Sequence[Geglu]
    project: Project
    rows: int

    def __call__(self, cells: Tensor) -> Tensor:
        """At most `rows` cells (n, values), ordered by (row, col, channel) -> latents (n, C)."""
        count = len(cells)
        if count < self.rows:
            filler = cells.new_zeros(self.rows - count, cells.shape[1])
            cells = torch.cat((cells, filler))
        rows = self.embed(cells)
        for block in self.blocks:
            rows = block(rows)
        return self.project(rows)[:count]


def fold_encoder(encoder: Encoder, embed: Affine, place: Placement, *, rows: int) -> LinearEncoder:
    """A reference encoder behind its first layer, which is folded already."""
    blocks = [fold_geglu(cast(GegluBlock, block), place) for block in encoder.blocks]
    return LinearEncoder(embed, blocks, fold_projection(encoder.out, place), rows)

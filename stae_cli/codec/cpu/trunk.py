"""The decoder's trunk in the inference form: latents of any sizes to the features of a head."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol, cast

import torch
from torch import Tensor

from stae_cli.codec.cpu.affine import Affine, Placement
from stae_cli.codec.cpu.folding import (
    fold_fused_pairs,
    fold_pair,
    fold_point_pairs,
    fold_projection,
)
from stae_cli.codec.cpu.layers import Chain, Conv, Pair, Project, chunks, normed
from stae_cli.codec.cpu.winograd import TILE
from stae_cli.network.architecture import Stage
from stae_cli.network.stupid_ae import Decoder, GegluBlock, ShuffleDecoder, SpatialBlock


class Trunk(Protocol):
    """The layers between the latents and the head."""

    @property
    def alignment(self) -> int:
        """Tiles that are cut at multiples of this compute the same numbers as the whole."""

    @property
    def lacking(self) -> Tensor | None:
        """What every row of the result lacks, see `Chain`."""

    def __call__(self, latents: Sequence[Tensor]) -> Tensor:
        """Latents (h, w, C) of any sizes -> (N, width) for all their positions in order."""


def fold_trunk(
    decoder: Decoder | ShuffleDecoder, sizes: Stage, place: Placement, *, rows: int
) -> Trunk:
    """The trunk of a decoder, which passes so many rows from layer to layer at once."""
    project = fold_projection(decoder.conv_in, place)
    blocks = list(decoder.blocks)
    pairs = [
        (cast(SpatialBlock, spatial), cast(GegluBlock, geglu))
        for spatial, geglu in zip(blocks[::2], blocks[1::2], strict=True)
    ]
    if sizes.decoder_kernel == 1:
        return PointTrunk(project, fold_point_pairs(pairs, place), rows)
    if place.fused:
        from stae_cli.codec.cuda.layers import FusedTrunk

        return FusedTrunk(project, *fold_fused_pairs(pairs, place), rows)
    return SpatialTrunk(project, [fold_pair(*pair, place) for pair in pairs], rows)


class PointTrunk:
    """A trunk in which no position sees another: rows go through all layers while in cache."""

    alignment = 1

    def __init__(self, project: Project, chain: Chain, rows: int) -> None:
        self._project, self._layers, self._rows = project, chain.layers, rows
        self.lacking = chain.lacking

    def __call__(self, latents: Sequence[Tensor]) -> Tensor:
        rows = torch.cat([latent.flatten(0, 1) for latent in latents])
        return torch.cat([self._chunk(part) for part in rows.split(self._rows)])

    def _chunk(self, rows: Tensor) -> Tensor:
        rows = self._project(rows)
        for layer in self._layers:
            rows = layer(rows)
        return rows


class SpatialTrunk:
    """A trunk with 3x3 convolutions, between which rows pass in chunks that stay in the cache."""

    lacking = None

    def __init__(self, project: Project, pairs: Sequence[Pair], rows: int) -> None:
        self._project, self._pairs, self._rows = project, pairs, rows
        self.alignment = 1 if isinstance(pairs[0].mixer, Conv) else TILE

    def __call__(self, latents: Sequence[Tensor]) -> Tensor:
        rows = torch.cat([latent.flatten(0, 1) for latent in latents])
        outer = self._project.outer
        grid, hidden = empty_rows(rows, outer), empty_rows(rows, outer)
        grids, hiddens = by_size(grid, latents), by_size(hidden, latents)
        for part in chunks(rows, self._rows):
            grid[part] = self._project(rows[part])
            hidden[part] = self._pairs[0].inner.gelu(normed(grid[part]), "tanh")
        for pair, following in zip(self._pairs, [*self._pairs[1:], None], strict=True):
            pair.mixer.add_to(grids, hiddens)
            for part in chunks(rows, self._rows):
                grid[part] = pair.geglu(grid[part])
                if following is not None:
                    hidden[part] = following.inner.gelu(normed(grid[part]), "tanh")
        return grid


def empty_rows(rows: Tensor, layer: Affine) -> Tensor:
    """Room for the layer's output for so many rows."""
    return rows.new_empty(len(rows), len(layer.bias))


def by_size(rows: Tensor, latents: Sequence[Tensor]) -> list[Tensor]:
    """Views (B, h, w, width) of the rows, neighbours of equal size as one."""
    views: list[Tensor] = []
    first = 0
    for (height, width), equal in groupby(latents, key=lambda latent: latent.shape[:2]):
        count = len(list(equal))
        last = first + count * height * width
        views.append(rows[first:last].view(count, height, width, -1))
        first = last
    return views

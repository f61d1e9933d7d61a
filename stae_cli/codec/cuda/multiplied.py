"""The inference form's layers for CUDA devices where `model.products` multiplies the matrices.

Norms, biases, GELU, gates and residuals are parts of the products; between two of them no more goes
through memory than what the second one reads. Any number of rows goes through at once: their bytes
do not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from stae_cli.codec.cpu.affine import Affine, Placement
from stae_cli.codec.cpu.folding import bias_of, kernel_of, wide
from stae_cli.codec.cpu.layers import chunks
from stae_cli.codec.cpu.trunk import by_size
from stae_cli.codec.cuda import kernels, products
from stae_cli.codec.cuda.layers import convolved
from stae_cli.codec.cuda.products import Norm, can_multiply
from stae_cli.network.stupid_ae import GegluBlock, Projection, RMSNorm, SpatialBlock


@dataclass(frozen=True)
class NormedLayer:
    """A layer behind a norm: weight (outputs, inputs), bias, and its share in what rows lack."""

    weight: Tensor
    bias: Tensor
    shift: Tensor  # (outputs,) float32

    def behind(self, squares: Tensor) -> Norm:
        """The norm before the layer."""
        return Norm(squares, self.shift)


@dataclass(frozen=True)
class GegluProducts:
    """A GEGLU block."""

    raised: NormedLayer  # interleaved
    down: Tensor  # (width, hidden)
    lacking: Tensor | None  # (width,) float32, of the rows behind it; None if no norm follows

    def __call__(self, rows: Tensor, squares: Tensor) -> Tensor | None:
        """Adds to rows (M, width) with these squares, in place; returns their new squares."""
        norm = self.raised.behind(squares)
        return self._lower(rows, products.geglu_product(rows, *self._up, norm=norm))

    def add_to(self, rows: Tensor, level: Tensor) -> Tensor | None:
        """The same, given the normalised rows."""
        return self._lower(rows, products.geglu_product(level, *self._up))

    @property
    def _up(self) -> tuple[Tensor, Tensor]:
        return self.raised.weight, self.raised.bias

    def _lower(self, rows: Tensor, hidden: Tensor) -> Tensor | None:
        if self.lacking is None:
            products.add_product(rows, hidden, self.down)
            return None
        return products.add_product_squares(rows, hidden, self.down, self.lacking)


@dataclass(frozen=True)
class EncoderProducts:
    """A whole encoder on rows: centred pixels or cells to latents."""

    embed: Affine
    lacking: Tensor  # (width,) float32: nothing yet
    blocks: Sequence[GegluProducts]
    inner: Affine
    outer: Affine

    def __call__(self, cells: Tensor) -> Tensor:
        """Cells (M, values) -> latents (M, C)."""
        embed, inner, outer = self.embed, self.inner, self.outer
        squares: Tensor | None
        rows, squares = products.product_squares(cells, embed.weight, embed.bias, self.lacking)
        for block in self.blocks:
            assert squares is not None
            squares = block(rows, squares)
        hidden = products.gelu_product(rows, inner.weight, inner.bias, exact=True)
        return products.product(hidden, outer.weight, outer.bias)


@dataclass(frozen=True)
class PairProducts:
    """A spatial block and the GEGLU block behind it."""

    inner: NormedLayer
    kernel: Tensor  # (C, C, 3, 3), channels last
    lacking: Tensor  # (width,) float32, of the rows between the two
    geglu: GegluProducts

    def enter(self, rows: Tensor, squares: Tensor, hidden: Tensor) -> None:
        """What the convolution is given, into `hidden`."""
        inner, norm = self.inner, self.inner.behind(squares)
        products.gelu_product(rows, inner.weight, inner.bias, exact=False, norm=norm, result=hidden)

    def leave(self, grid: Tensor, mixed: Tensor) -> Tensor | None:
        """Adds some rows of what was mixed, and what the GEGLU block makes of them."""
        return self.geglu.add_to(grid, kernels.add_normed(grid, mixed, self.lacking))


class ProductTrunk:
    """A trunk with 3x3 convolutions."""

    alignment = 1

    def __init__(
        self,
        project: tuple[Affine, Affine],
        nothing: Tensor,
        pairs: Sequence[PairProducts],
        lacking: Tensor,
        rows: int,
    ) -> None:
        self._inner, self._outer = project
        self._nothing, self._pairs, self._rows = nothing, pairs, rows
        self.lacking = lacking

    def __call__(self, latents: Sequence[Tensor]) -> Tensor:
        """Latents (h, w, C) of any sizes -> (N, width) for all their positions in order."""
        rows = torch.cat([latent.flatten(0, 1) for latent in latents])
        inner, outer, (first, *others) = self._inner, self._outer, self._pairs
        hidden = products.gelu_product(rows, inner.weight, inner.bias, exact=True)
        grid, squares = products.product_squares(hidden, outer.weight, outer.bias, self._nothing)
        first.enter(grid, squares, hidden)
        for pair, following in zip(self._pairs, [*others, None], strict=True):
            mixed = convolved(by_size(hidden, latents), pair.kernel)
            for part in chunks(rows, self._rows):
                found = pair.leave(grid[part], mixed[part])
                if following is not None:
                    assert found is not None
                    following.enter(grid[part], found, hidden[part])
            del mixed  # before the next one is made: they are what memory is full of
        return grid


def fits(width: int, *sides: int) -> bool:
    """Whether all products of a stage of this width, which begins or ends at `sides`, fit."""
    pairs = [(width, 2 * width), (2 * width, width), (width, width)]
    pairs += [(side, width) for side in sides]
    return all(can_multiply(*pair) for pair in pairs)


def fold_encoder_products(
    embed: Affine, blocks: Sequence[GegluBlock], out: Projection, place: Placement
) -> EncoderProducts:
    """A reference encoder's blocks and output behind its first layer."""
    nothing = torch.zeros(len(embed.bias), dtype=torch.float64)
    folded, lacking = _fold_geglus(blocks, place, nothing)
    inner, outer = (_plain(conv, place, each) for conv, each in
                    ((out.model[0], lacking), (out.model[2], None)))  # fmt: skip
    return EncoderProducts(embed, place.put_wide(nothing), folded, inner, outer)


def fold_trunk_products(
    project: Projection,
    pairs: Sequence[tuple[SpatialBlock, GegluBlock]],
    place: Placement,
    *,
    rows: int,
) -> ProductTrunk:
    """A reference trunk's layers."""
    first, second = (_plain(project.model[index], place, None) for index in (0, 2))
    nothing = lacking = torch.zeros(len(second.bias), dtype=torch.float64)
    folded = []
    for index, (spatial, geglu) in enumerate(pairs):
        inner = _behind(spatial.mlp[0], spatial.norm, place, lacking)
        between = lacking + bias_of(spatial.mlp[2])
        last = index == len(pairs) - 1
        block, lacking = _geglu(geglu, place, between, normed_next=not last)
        kernel = kernel_of(cast(torch.nn.Conv2d, spatial.mlp[2]), place)
        folded.append(PairProducts(inner, kernel, place.put_wide(between), block))
    return ProductTrunk((first, second), place.put_wide(nothing), folded, lacking, rows)


def _fold_geglus(
    blocks: Sequence[GegluBlock], place: Placement, lacking: Tensor
) -> tuple[list[GegluProducts], Tensor]:
    folded = []
    for index, block in enumerate(blocks):
        step, lacking = _geglu(block, place, lacking, normed_next=index < len(blocks) - 1)
        folded.append(step)
    return folded, lacking


def _geglu(
    block: GegluBlock, place: Placement, lacking: Tensor, *, normed_next: bool
) -> tuple[GegluProducts, Tensor]:
    """The block, and what its rows lack behind it."""
    layer = _behind(block.mlp.conv_up, block.norm, place, lacking)
    raised = NormedLayer(
        *(products.interleaved(each) for each in (layer.weight, layer.bias, layer.shift))
    )
    down = place.put(wide(block.mlp.conv_down.weight).flatten(1))
    after = lacking + bias_of(block.mlp.conv_down)
    return GegluProducts(raised, down, place.put_wide(after) if normed_next else None), after


def _behind(conv: torch.nn.Module, norm: RMSNorm, place: Placement, lacking: Tensor) -> NormedLayer:
    """A 1x1 conv behind a norm, whose weight it takes over."""
    weight = wide(cast(torch.nn.Conv2d, conv).weight).flatten(1) * wide(norm.weight)
    return NormedLayer(
        place.put(weight), place.put(bias_of(conv)), place.put_wide(weight @ lacking)
    )


def _plain(conv: torch.nn.Module, place: Placement, lacking: Tensor | None) -> Affine:
    """A 1x1 conv on rows that lack something."""
    weight = wide(cast(torch.nn.Conv2d, conv).weight).flatten(1)
    bias = bias_of(conv) if lacking is None else bias_of(conv) + weight @ lacking
    return place.affine(weight, bias)

"""Folding: a reference model's layers to those of the plain form, computed in float64 on the CPU.

`PlainBackend` is for every device; what other backends fold alike is here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import Conv2d

from stae_cli.codec.cpu.affine import Affine, Placement, rows_are_alike
from stae_cli.codec.cpu.layers import (
    Conv,
    FieldHead,
    Geglu,
    Head,
    Layer,
    Mixer,
    Pair,
    PointPair,
    PointTrunk,
    Project,
    ShuffleHead,
    SpatialTrunk,
    Trunk,
)
from stae_cli.codec.cpu.parts import Parts
from stae_cli.codec.cpu.winograd import TILES_AT_ONCE, winograd
from stae_cli.codec.tensors import centred, patches_of
from stae_cli.network.architecture import Stage
from stae_cli.network.stupid_ae import (
    Decoder,
    Encoder,
    GegluBlock,
    NeuralField,
    Projection,
    RMSNorm,
    ShuffleDecoder,
    SpatialBlock,
)


class Weights(NamedTuple):
    """A layer's parameters, float64 on the CPU."""

    weight: Tensor  # (outputs, inputs)
    bias: Tensor  # (outputs,)

    def after(self, deferred: Tensor) -> Weights:
        """The layer for rows to which the bias `deferred` (inputs,) was not added."""
        return Weights(self.weight, self.bias + self.weight @ deferred)


class FieldWeights(NamedTuple):
    """A neural field with its constants computed and the last layer in its generator, float64."""

    generator: Weights  # width -> head_width^2 + 3 * head_width, both matrices transposed
    encoded: Tensor  # (P, head_width)
    constant: Tensor  # (3, P)


def wide(parameter: Tensor) -> Tensor:
    """In float64 on the CPU, where everything is folded."""
    return parameter.detach().cpu().double()


def bias_of(conv: torch.nn.Module) -> Tensor:
    """The bias of a convolution that has one, in float64."""
    bias = cast(Conv2d, conv).bias
    assert bias is not None
    return wide(bias)


def conv_weights(conv: torch.nn.Module, norm: RMSNorm | None = None) -> Weights:
    """A 1x1 convolution, with the weight of the norm before it."""
    weight = wide(cast(Conv2d, conv).weight).flatten(1)
    if norm is not None:
        weight = weight * wide(norm.weight)
    return Weights(weight, bias_of(conv))


def cell_weights(encoder: Encoder) -> Weights:
    """The convolution that cuts a grid to cells, on rows ordered by (row, col, channel)."""
    conv = encoder.initial[0]
    weight = wide(cast(Conv2d, conv).weight)
    return Weights(weight.permute(0, 2, 3, 1).flatten(1), bias_of(conv))


def pixel_weights(encoder: Encoder) -> Weights:
    """The same on rows of u = (pixel - 128) / 128, which half precision holds exactly.

    pixel / 127.5 - 1 = u * 128 / 127.5 + 0.5 / 127.5.
    """
    weight, bias = cell_weights(encoder)
    return Weights(weight * (128 / 127.5), bias + weight.sum(1) * (0.5 / 127.5))


def cell_painter_weights(decoder: ShuffleDecoder, patch: int) -> Weights:
    """The layer before a shuffle, its outputs ordered by (row, col, channel) in the cell."""
    conv = cast(Conv2d, decoder.shuffle[0])
    weight, bias = (
        each.flatten(1).unflatten(0, (-1, patch**2)).transpose(0, 1).flatten(0, 1)
        for each in (wide(conv.weight), bias_of(conv)[:, None])
    )
    return Weights(weight, bias[:, 0])


def field_weights(decoder: Decoder) -> FieldWeights:
    """The neural field of a decoder."""
    field = cast(NeuralField, decoder.nerf[0])
    size = field.head_width
    positions, last = wide(decoder.positions)[0], wide(decoder.last.weight)  # (P, s), (3, s)
    scale = torch.rsqrt(positions.square().mean(-1, keepdim=True) + field.norm.eps)
    first, second = wide(field.param_gen.weight).split(size * size)
    first_bias, second_bias = wide(field.param_gen.bias).split(size * size)
    # Generated transposed: (column, row) of the first matrix, (colour, row) of the second.
    first = first.unflatten(0, (size, size)).transpose(0, 1).flatten(0, 1)
    first_bias = first_bias.view(size, size).T.flatten()
    short = torch.einsum("ijk,cj->cik", second.unflatten(0, (size, size)), last).flatten(0, 1)
    short_bias = (last @ second_bias.unflatten(0, (size, size)).T).flatten()
    return FieldWeights(
        Weights(torch.cat((first, short)), torch.cat((first_bias, short_bias))),
        positions * scale * wide(field.norm.weight),
        (positions @ last.T + wide(decoder.last.bias)).T,
    )


def pairs_of(decoder: Decoder | ShuffleDecoder) -> list[tuple[SpatialBlock, GegluBlock]]:
    """The blocks of a decoder, two by two."""
    blocks = list(decoder.blocks)
    return [
        (cast(SpatialBlock, spatial), cast(GegluBlock, geglu))
        for spatial, geglu in zip(blocks[::2], blocks[1::2], strict=True)
    ]


def kernel_of(conv: Conv2d, place: Placement) -> Tensor:
    """The kernel (C, C, 3, 3) of a convolution, channels last."""
    return place.put(wide(conv.weight)).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class PlainBackend:
    """torch's own functions on any device, and oneDNN's on x86 CPUs; see `inference.Backend`."""

    place: Placement

    def parts(self, rows: int) -> Parts:
        on_cpu = self.place.device.type == "cpu"
        return Parts(rows, on_cpu, fewer=on_cpu and rows_are_alike(self.place.dtype))

    def cut(self, images: Tensor, size: int) -> Tensor:
        return patches_of(images, size)  # of the images' dtype: `centred` is the first layer

    def fold_encoder(self, encoder: Encoder) -> Sequence[Layer]:
        embed = self.place.affine(*pixel_weights(encoder))
        return [partial(centred, self.place.dtype), embed, *self._encoder_layers(encoder)]

    def fold_cell_encoder(self, encoder: Encoder) -> Sequence[Layer]:
        return [self.place.affine(*cell_weights(encoder)), *self._encoder_layers(encoder)]

    def fold_decoder(
        self, decoder: Decoder | ShuffleDecoder, stage: Stage, *, parts: Parts
    ) -> tuple[Trunk, Head]:
        trunk = self._trunk(decoder, stage, parts)
        if isinstance(decoder, ShuffleDecoder):
            return trunk, ShuffleHead(self._layer(decoder.shuffle[0]))
        generator, encoded, constant = field_weights(decoder)
        place = self.place
        return trunk, FieldHead(place.affine(*generator), place.put(encoded), place.put(constant))

    def fold_cell_decoder(
        self, decoder: ShuffleDecoder, stage: Stage, *, parts: Parts
    ) -> tuple[Trunk, Layer]:
        painter = self.place.affine(*cell_painter_weights(decoder, stage.patch))
        return self._trunk(decoder, stage, parts), painter

    def _encoder_layers(self, encoder: Encoder) -> Sequence[Layer]:
        blocks = [self._geglu(cast(GegluBlock, block)) for block in encoder.blocks]
        return [*blocks, self._project(encoder.out)]

    def _trunk(self, decoder: Decoder | ShuffleDecoder, stage: Stage, parts: Parts) -> Trunk:
        project, pairs = self._project(decoder.conv_in), pairs_of(decoder)
        if stage.decoder_kernel == 1:
            return PointTrunk([project, *(self._point_pair(*pair) for pair in pairs)], parts)
        return SpatialTrunk(project, [self._pair(*pair) for pair in pairs], parts)

    def _pair(self, spatial: SpatialBlock, geglu: GegluBlock) -> Pair:
        mixer = self._mixer(cast(Conv2d, spatial.mlp[2]))
        return Pair(self._layer(spatial.mlp[0], spatial.norm), mixer, self._geglu(geglu))

    def _point_pair(self, spatial: SpatialBlock, geglu: GegluBlock) -> PointPair:
        inner = self._layer(spatial.mlp[0], spatial.norm)
        return PointPair(inner, self._layer(spatial.mlp[2]), self._geglu(geglu))

    def _mixer(self, conv: Conv2d) -> Mixer:
        """Winograd's transforms pay on the CPU, and cost more digits than half precision has."""
        if self.place.device.type == "cpu" and self.place.dtype == torch.float32:
            return winograd(wide(conv.weight), bias_of(conv), self.place, self.parts(TILES_AT_ONCE))
        return Conv(kernel_of(conv, self.place), self.place.put(bias_of(conv)))

    def _geglu(self, block: GegluBlock) -> Geglu:
        """Gate and act are layers of their own, each with the weight of the norm."""
        weight, bias = conv_weights(block.mlp.conv_up, block.norm)
        gate, act = zip(weight.chunk(2), bias.chunk(2), strict=True)
        return Geglu(
            self.place.affine(*gate), self.place.affine(*act), self._layer(block.mlp.conv_down)
        )

    def _project(self, projection: Projection) -> Project:
        return Project(self._layer(projection.model[0]), self._layer(projection.model[2]))

    def _layer(self, conv: torch.nn.Module, norm: RMSNorm | None = None) -> Affine:
        return self.place.affine(*conv_weights(conv, norm))

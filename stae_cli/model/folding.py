"""Folding: a reference model's layers to the inference form's, computed in float64 on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from stae_cli.model.affine import Affine, Placement
from stae_cli.model.layers import (
    Conv,
    FieldHead,
    Geglu,
    Head,
    Layer,
    Mixer,
    Pair,
    PointPair,
    Project,
    ShuffleHead,
)
from stae_cli.model.stupid_ae import (
    Decoder,
    Encoder,
    GegluBlock,
    NeuralField,
    Projection,
    RMSNorm,
    ShuffleDecoder,
    SpatialBlock,
)
from stae_cli.model.trial import has_tensor_cores
from stae_cli.model.winograd import winograd

if TYPE_CHECKING:
    from stae_cli.model.fused import FusedPair, GegluStep, Stream


def _wide(parameter: Tensor) -> Tensor:
    return parameter.detach().cpu().double()


def fold_pixel_layer(encoder: Encoder, place: Placement) -> Affine:
    """The patch conv on rows of (pixel - 128) / 128, which half precision holds exactly.

    pixel / 127.5 - 1 = u * 128 / 127.5 + 0.5 / 127.5 for u = (pixel - 128) / 128.
    """
    weight, bias = _cell_weights(encoder)
    return place.affine(weight * (128 / 127.5), bias + weight.sum(1) * (0.5 / 127.5))


def fold_cell_layer(encoder: Encoder, place: Placement) -> Affine:
    """The conv that cuts a grid of latents to cells, on rows ordered by (row, col, channel)."""
    return place.affine(*_cell_weights(encoder))


def _cell_weights(encoder: Encoder) -> tuple[Tensor, Tensor]:
    """Columns are (row, col, channel)."""
    conv = cast(torch.nn.Conv2d, encoder.initial[0])
    assert conv.bias is not None
    return _wide(conv.weight).permute(0, 2, 3, 1).flatten(1), _wide(conv.bias)


def _conv1x1(conv: torch.nn.Module, place: Placement, norm: RMSNorm | None = None) -> Affine:
    conv = cast(torch.nn.Conv2d, conv)
    assert conv.bias is not None
    weight = _wide(conv.weight).flatten(1)
    if norm is not None:
        weight = weight * _wide(norm.weight)
    return place.affine(weight, _wide(conv.bias))


def fold_geglus(blocks: Sequence[GegluBlock], place: Placement) -> Sequence[Layer]:
    """GEGLU blocks one after another."""
    if place.fused:
        from stae_cli.model.fused import Stack

        return [Stack([_geglu_step(block, place) for block in blocks])]
    return [_geglu(block, place) for block in blocks]


def _geglu(block: GegluBlock, place: Placement) -> Geglu:
    """The norm's weight in gate and act."""
    up = block.mlp.conv_up
    assert up.bias is not None
    gate, act = (_wide(up.weight).flatten(1) * _wide(block.norm.weight)).chunk(2)
    gate_bias, act_bias = _wide(up.bias).chunk(2)
    return Geglu(
        place.affine(gate, gate_bias),
        place.affine(act, act_bias),
        _conv1x1(block.mlp.conv_down, place),
    )


def _geglu_step(block: GegluBlock, place: Placement) -> GegluStep:
    from stae_cli.model.fused import GegluStep

    raised = _conv1x1(block.mlp.conv_up, place, block.norm)
    return GegluStep(raised, _conv1x1(block.mlp.conv_down, place))


def fold_pair(spatial: SpatialBlock, geglu: GegluBlock, place: Placement) -> Pair:
    """A spatial block and the GEGLU block behind it."""
    inner = _conv1x1(spatial.mlp[0], place, spatial.norm)
    return Pair(inner, _mixer(cast(torch.nn.Conv2d, spatial.mlp[2]), place), _geglu(geglu, place))


def fold_fused_pair(spatial: SpatialBlock, geglu: GegluBlock, place: Placement) -> FusedPair:
    """The same two blocks with kernels between their products."""
    from stae_cli.model.fused import FusedPair

    conv = _conv3x3(cast(torch.nn.Conv2d, spatial.mlp[2]), place)
    inner = _conv1x1(spatial.mlp[0], place, spatial.norm)
    return FusedPair(inner, conv.kernel, conv.bias, _geglu_step(geglu, place))


def fold_point_pairs(
    pairs: Sequence[tuple[SpatialBlock, GegluBlock]], place: Placement
) -> Sequence[Layer]:
    """Such blocks one after another where the kernel is 1."""
    if place.fused:
        from stae_cli.model.fused import PointStep, Stack

        steps: list[Callable[[Stream], None]] = []
        for spatial, geglu in pairs:
            inner = _conv1x1(spatial.mlp[0], place, spatial.norm)
            steps += PointStep(inner, _conv1x1(spatial.mlp[2], place)), _geglu_step(geglu, place)
        return [Stack(steps)]
    return [_point_pair(*pair, place) for pair in pairs]


def _point_pair(spatial: SpatialBlock, geglu: GegluBlock, place: Placement) -> PointPair:
    inner = _conv1x1(spatial.mlp[0], place, spatial.norm)
    return PointPair(inner, _conv1x1(spatial.mlp[2], place), _geglu(geglu, place))


def _mixer(conv: torch.nn.Conv2d, place: Placement) -> Mixer:
    """Winograd's transforms pay on the CPU, and cost more digits than half precision has."""
    if place.device.type == "cpu" and place.dtype == torch.float32:
        assert conv.bias is not None
        return winograd(_wide(conv.weight), _wide(conv.bias), place)
    return _conv3x3(conv, place)


def _conv3x3(conv: torch.nn.Conv2d, place: Placement) -> Conv:
    assert conv.bias is not None
    kernel = place.put(_wide(conv.weight)).contiguous(memory_format=torch.channels_last)
    return Conv(kernel, place.put(_wide(conv.bias)))


def fold_projection(projection: Projection, place: Placement) -> Project:
    """The 1x1 convs before and behind the activation."""
    return Project(_conv1x1(projection.model[0], place), _conv1x1(projection.model[2], place))


def fold_cell_painter(decoder: ShuffleDecoder, patch: int, place: Placement) -> Affine:
    """The layer before a shuffle, its outputs ordered by (row, col, channel) in the cell."""
    conv = cast(torch.nn.Conv2d, decoder.shuffle[0])
    assert conv.bias is not None
    weight, bias = (
        _wide(each).flatten(1).unflatten(0, (-1, patch**2)).transpose(0, 1).flatten(0, 1)
        for each in (conv.weight, conv.bias[:, None])
    )
    return place.affine(weight, bias[:, 0])


def fold_head(decoder: Decoder | ShuffleDecoder, place: Placement) -> Head:
    """Whichever head the decoder has."""
    if isinstance(decoder, ShuffleDecoder):
        return ShuffleHead(_conv1x1(decoder.shuffle[0], place))
    return _fold_field(decoder, place)


def _fold_field(decoder: Decoder, place: Placement) -> FieldHead:
    """The neural field with its constants computed, the last layer in its generator."""
    field = cast(NeuralField, decoder.nerf[0])
    size = field.head_width
    positions, last = _wide(decoder.positions)[0], _wide(decoder.last.weight)  # (P, s), (3, s)
    scale = torch.rsqrt(positions.square().mean(-1, keepdim=True) + field.norm.eps)
    weight, bias = _wide(field.param_gen.weight), _wide(field.param_gen.bias)
    first, second = weight.split(size * size)
    first_bias, second_bias = bias.split(size * size)
    # Generated transposed: (column, row) of the first matrix, (colour, row) of the second.
    first = first.unflatten(0, (size, size)).transpose(0, 1).flatten(0, 1)
    first_bias = first_bias.view(size, size).T.flatten()
    short = torch.einsum("ijk,cj->cik", second.unflatten(0, (size, size)), last).flatten(0, 1)
    short_bias = (last @ second_bias.unflatten(0, (size, size)).T).flatten()
    kind = _field_head(size, len(positions), place)
    return kind(
        place.affine(torch.cat((first, short)), torch.cat((first_bias, short_bias))),
        place.put(positions * scale * _wide(field.norm.weight)),
        place.put((positions @ last.T + _wide(decoder.last.bias)).T),
    )


def _field_head(width: int, pixels: int, place: Placement) -> type[FieldHead]:
    """How a field of this width, with so many pixels to a patch, is painted best."""
    if place.fused and has_tensor_cores(place.device, place.dtype):
        from stae_cli.model.fused import FusedFieldHead
        from stae_cli.model.kernels import can_paint

        if can_paint(width, pixels):
            return FusedFieldHead
    return FieldHead

"""Folding: a reference model's layers to the inference form's, computed in float64 on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from stae_cli.codec.cpu.affine import Affine, Placement
from stae_cli.codec.cpu.layers import (
    Chain,
    Conv,
    FieldHead,
    Geglu,
    Head,
    Mixer,
    Pair,
    PointPair,
    Project,
    ShuffleHead,
)
from stae_cli.codec.cpu.winograd import winograd
from stae_cli.codec.cuda.selftest import has_tensor_cores
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

if TYPE_CHECKING:
    from stae_cli.codec.cuda.layers import FusedPair, GegluStep


def wide(parameter: Tensor) -> Tensor:
    """In float64 on the CPU, where everything is folded."""
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
    return wide(conv.weight).permute(0, 2, 3, 1).flatten(1), wide(conv.bias)


def _conv1x1(
    conv: torch.nn.Module,
    place: Placement,
    norm: RMSNorm | None = None,
    lacking: Tensor | None = None,
) -> Affine:
    """A 1x1 conv, behind a norm whose weight it takes over, or on rows that lack something."""
    conv = cast(torch.nn.Conv2d, conv)
    weight, bias = wide(conv.weight).flatten(1), bias_of(conv)
    if norm is not None:
        weight = weight * wide(norm.weight)
    return place.affine(weight, _completed(weight, bias, lacking))


def bias_of(conv: torch.nn.Module) -> Tensor:
    """The bias of a convolution that has one."""
    bias = cast(torch.nn.Conv2d, conv).bias
    assert bias is not None
    return wide(bias)


def _completed(weight: Tensor, bias: Tensor, lacking: Tensor | None) -> Tensor:
    """The bias of a layer whose inputs lack a constant."""
    return bias if lacking is None else bias + weight @ lacking


def fold_geglus(blocks: Sequence[GegluBlock], place: Placement) -> Chain:
    """GEGLU blocks one after another."""
    if not place.fused:
        return Chain([_geglu(block, place) for block in blocks])
    steps: list[GegluStep] = []
    lacking = _nothing(blocks)
    for block in blocks:
        steps.append(_geglu_step(block, place, lacking))
        lacking = lacking + bias_of(block.mlp.conv_down)
    return Chain(steps, lacking)


def _nothing(blocks: Sequence[GegluBlock]) -> Tensor:
    """What rows lack at first."""
    return torch.zeros(len(blocks[0].norm.weight), dtype=torch.float64)


def _geglu(block: GegluBlock, place: Placement) -> Geglu:
    """The norm's weight in gate and act."""
    up = block.mlp.conv_up
    assert up.bias is not None
    gate, act = (wide(up.weight).flatten(1) * wide(block.norm.weight)).chunk(2)
    gate_bias, act_bias = wide(up.bias).chunk(2)
    return Geglu(
        place.affine(gate, gate_bias),
        place.affine(act, act_bias),
        _conv1x1(block.mlp.conv_down, place),
    )


def _geglu_step(block: GegluBlock, place: Placement, lacking: Tensor) -> GegluStep:
    from stae_cli.codec.cuda.layers import GegluStep

    raised = _conv1x1(block.mlp.conv_up, place, block.norm)
    down = place.put(wide(block.mlp.conv_down.weight).flatten(1))
    return GegluStep(raised, down, place.put_wide(lacking))


def fold_pair(spatial: SpatialBlock, geglu: GegluBlock, place: Placement) -> Pair:
    """A spatial block and the GEGLU block behind it."""
    inner = _conv1x1(spatial.mlp[0], place, spatial.norm)
    return Pair(inner, _mixer(cast(torch.nn.Conv2d, spatial.mlp[2]), place), _geglu(geglu, place))


def fold_fused_pairs(
    pairs: Sequence[tuple[SpatialBlock, GegluBlock]], place: Placement
) -> tuple[list[FusedPair], Tensor]:
    """Such pairs with kernels between their products, and what their rows lack at the end."""
    from stae_cli.codec.cuda.layers import FusedPair

    folded: list[FusedPair] = []
    lacking = _nothing([geglu for _, geglu in pairs])
    for spatial, geglu in pairs:
        inner = _conv1x1(spatial.mlp[0], place, spatial.norm)
        before, lacking = place.put_wide(lacking), lacking + bias_of(spatial.mlp[2])
        kernel = kernel_of(cast(torch.nn.Conv2d, spatial.mlp[2]), place)
        folded.append(FusedPair(inner, before, kernel, _geglu_step(geglu, place, lacking)))
        lacking = lacking + bias_of(geglu.mlp.conv_down)
    return folded, lacking


def fold_point_pairs(pairs: Sequence[tuple[SpatialBlock, GegluBlock]], place: Placement) -> Chain:
    """Such blocks one after another where the kernel is 1."""
    if not place.fused:
        return Chain([_point_pair(*pair, place) for pair in pairs])
    from stae_cli.codec.cuda.layers import PointStep

    steps: list[PointStep | GegluStep] = []
    lacking = _nothing([geglu for _, geglu in pairs])
    for spatial, geglu in pairs:
        inner = _conv1x1(spatial.mlp[0], place, spatial.norm)
        outer = cast(torch.nn.Conv2d, spatial.mlp[2])
        weight = place.put(wide(outer.weight).flatten(1))
        steps.append(PointStep(inner, weight, place.put_wide(lacking)))
        lacking = lacking + bias_of(outer)
        steps.append(_geglu_step(geglu, place, lacking))
        lacking = lacking + bias_of(geglu.mlp.conv_down)
    return Chain(steps, lacking)


def _point_pair(spatial: SpatialBlock, geglu: GegluBlock, place: Placement) -> PointPair:
    inner = _conv1x1(spatial.mlp[0], place, spatial.norm)
    return PointPair(inner, _conv1x1(spatial.mlp[2], place), _geglu(geglu, place))


def _mixer(conv: torch.nn.Conv2d, place: Placement) -> Mixer:
    """Winograd's transforms pay on the CPU, and cost more digits than half precision has."""
    if place.device.type == "cpu" and place.dtype == torch.float32:
        return winograd(wide(conv.weight), bias_of(conv), place)
    return Conv(kernel_of(conv, place), place.put(bias_of(conv)))


def kernel_of(conv: torch.nn.Conv2d, place: Placement) -> Tensor:
    """The kernel (C, C, 3, 3) of a convolution, channels last."""
    return place.put(wide(conv.weight)).contiguous(memory_format=torch.channels_last)


def fold_projection(
    projection: Projection, place: Placement, lacking: Tensor | None = None
) -> Project:
    """The 1x1 convs before and behind the activation, on rows that lack something."""
    inner = _conv1x1(projection.model[0], place, lacking=lacking)
    return Project(inner, _conv1x1(projection.model[2], place))


def fold_cell_painter(
    decoder: ShuffleDecoder, patch: int, place: Placement, lacking: Tensor | None
) -> Affine:
    """The layer before a shuffle, its outputs ordered by (row, col, channel) in the cell."""
    conv = cast(torch.nn.Conv2d, decoder.shuffle[0])
    weight, bias = (
        each.flatten(1).unflatten(0, (-1, patch**2)).transpose(0, 1).flatten(0, 1)
        for each in (wide(conv.weight), bias_of(conv)[:, None])
    )
    return place.affine(weight, _completed(weight, bias[:, 0], lacking))


def fold_head(decoder: Decoder | ShuffleDecoder, place: Placement, lacking: Tensor | None) -> Head:
    """Whichever head the decoder has, on rows that lack something."""
    if isinstance(decoder, ShuffleDecoder):
        return ShuffleHead(_conv1x1(decoder.shuffle[0], place, lacking=lacking))
    return _fold_field(decoder, place, lacking)


def _fold_field(decoder: Decoder, place: Placement, lacking: Tensor | None) -> FieldHead:
    """The neural field with its constants computed, the last layer in its generator."""
    field = cast(NeuralField, decoder.nerf[0])
    size = field.head_width
    positions, last = wide(decoder.positions)[0], wide(decoder.last.weight)  # (P, s), (3, s)
    scale = torch.rsqrt(positions.square().mean(-1, keepdim=True) + field.norm.eps)
    weight, bias = wide(field.param_gen.weight), wide(field.param_gen.bias)
    first, second = weight.split(size * size)
    first_bias, second_bias = bias.split(size * size)
    # Generated transposed: (column, row) of the first matrix, (colour, row) of the second.
    first = first.unflatten(0, (size, size)).transpose(0, 1).flatten(0, 1)
    first_bias = first_bias.view(size, size).T.flatten()
    short = torch.einsum("ijk,cj->cik", second.unflatten(0, (size, size)), last).flatten(0, 1)
    short_bias = (last @ second_bias.unflatten(0, (size, size)).T).flatten()
    kind = _field_head(size, len(positions), place)
    generator, generator_bias = torch.cat((first, short)), torch.cat((first_bias, short_bias))
    return kind(
        place.affine(generator, _completed(generator, generator_bias, lacking)),
        place.put(positions * scale * wide(field.norm.weight)),
        place.put((positions @ last.T + wide(decoder.last.bias)).T),
    )


def _field_head(width: int, pixels: int, place: Placement) -> type[FieldHead]:
    """How a field of this width, with so many pixels to a patch, is painted best."""
    if place.fused and has_tensor_cores(place.device, place.dtype):
        from stae_cli.codec.cuda.kernels import can_paint
        from stae_cli.codec.cuda.layers import FusedFieldHead

        if can_paint(width, pixels):
            return FusedFieldHead
    return FieldHead

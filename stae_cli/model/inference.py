"""The inference form: the reference network's function, rearranged for speed.

Activations are token matrices (N, channels), one row per patch, so that every 1x1 conv is one
matrix product and pictures of any sizes share it. Built from a reference model: norm weights,
pixel scaling and the head's last layer are folded into their neighbours in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, linear, silu

from stae_cli.model.stupid_ae import (
    CHANNEL_NORM_EPS,
    COLUMN_NORM_FLOOR,
    Decoder,
    Encoder,
    GegluBlock,
    NeuralField,
    Projection,
    RMSNorm,
    SpatialBlock,
    StupidAE,
)

# Rows that go through the encoder at once. Always exactly this many (the last chunk is filled
# up), so that a row meets the same kernels whatever it is packed with: its latent then has the
# same bytes alone and in company.
ENCODE_ROWS = {"cpu": 1024, "cuda": 16384, "mps": 4096}
DECODE_ROWS = {"cpu": 1024, "cuda": 16384, "mps": 4096}


@dataclass(frozen=True)
class Affine:
    """x @ weight.T + bias on token rows."""

    weight: Tensor  # (outputs, inputs)
    bias: Tensor  # (outputs,)

    def __call__(self, rows: Tensor) -> Tensor:
        return linear(rows, self.weight, self.bias)


@dataclass(frozen=True)
class Geglu:
    """x + down(gate * tanh-GELU(act)), with the norm's weight folded into `up`."""

    up: Affine
    down: Affine

    def __call__(self, rows: Tensor) -> Tensor:
        gate, act = self.up(_normed(rows)).chunk(2, dim=-1)
        return rows + self.down(gate * gelu(act, approximate="tanh"))


@dataclass(frozen=True)
class Spatial:
    """x + conv3x3(tanh-GELU(inner(norm(x)))) on a token grid, the norm's weight folded in."""

    inner: Affine
    kernel: Tensor  # (C, C, 3, 3), channels last
    bias: Tensor  # (C,)

    def __call__(self, grid: Tensor) -> Tensor:
        hidden = gelu(self.inner(_normed(grid)), approximate="tanh")  # (B, h, w, C)
        mixed = conv2d(hidden.permute(0, 3, 1, 2), self.kernel, self.bias, padding=1)
        return grid + mixed.permute(0, 2, 3, 1)


@dataclass(frozen=True)
class Head:
    """The neural field with everything that does not depend on the patch computed once.

    The last layer is folded into the generator of the second matrix, whose 32 columns become 3.
    """

    generator: Affine  # width -> head_width^2 + 3 * head_width
    encoded: Tensor  # (P, head_width): norm(positions)
    constant: Tensor  # (P, 3): positions through the last layer, its bias included

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows (N, width) -> (N, P, 3)."""
        size = self.encoded.shape[1]
        generated = self.generator(rows)
        first, second = generated.split((size * size, 3 * size), dim=-1)
        first = first.unflatten(-1, (size, size))
        columns = torch.linalg.vector_norm(first, dim=-2, keepdim=True, dtype=torch.float32)
        hidden = (self.encoded @ first).div_(columns.clamp_min_(COLUMN_NORM_FLOOR).to(rows.dtype))
        return silu(hidden, inplace=True) @ second.unflatten(-1, (size, 3)) + self.constant


@dataclass(frozen=True)
class Placement:
    """Where folded float64 weights end up."""

    device: torch.device
    dtype: torch.dtype

    def affine(self, weight: Tensor, bias: Tensor) -> Affine:
        return Affine(self.put(weight), self.put(bias))

    def put(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype, copy=True).contiguous()


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
        self.patch = sizes.patch
        self.halo = sizes.halo
        self.encode_rows = ENCODE_ROWS[device.type]
        self.decode_rows = DECODE_ROWS[device.type]
        self._embed = _pixel_layer(encoder, place)
        self._encoder_blocks = [_geglu(cast(GegluBlock, b), place) for b in encoder.blocks]
        self._to_latent = _projection(encoder.out, place)
        self._from_latent = _projection(decoder.conv_in, place)
        blocks = list(decoder.blocks)
        self._pairs = [
            (_spatial(cast(SpatialBlock, s), place), _geglu(cast(GegluBlock, g), place))
            for s, g in zip(blocks[::2], blocks[1::2], strict=True)
        ]
        self._head = _head(decoder, place)

    def encode(self, patches: Tensor) -> Tensor:
        """Patches (N, patch * patch * 3), uint8 or float in [-1, 1] -> latents (N, C)."""
        return torch.cat([self._encode_chunk(chunk) for chunk in patches.split(self.encode_rows)])

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
        return outer(gelu(inner(rows)))[:count]

    def _centred(self, patches: Tensor) -> Tensor:
        """uint8 or float in [-1, 1] -> (pixel - 128) / 128, exact for uint8 in every dtype."""
        if patches.dtype == torch.uint8:
            return patches.to(self._embed.weight.dtype).sub_(128).div_(128)
        shifted = patches.float().mul(127.5 / 128).sub_(0.5 / 128)
        return shifted.to(self._embed.weight.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, h, w, C) -> (B, h * patch, w * patch, 3), about [-1, 1], unclamped."""
        inner, outer = self._from_latent
        grid = self._by_rows(latents, lambda rows: outer(gelu(inner(rows))))
        for spatial, geglu in self._pairs:
            grid = self._by_rows(spatial(grid), geglu)
        pixels = self._by_rows(grid, self._head)  # (B, h, w, patch^2, 3)
        batch, height, width = latents.shape[:3]
        pixels = pixels.view(batch, height, width, self.patch, self.patch, 3)
        return pixels.transpose(2, 3).reshape(batch, height * self.patch, width * self.patch, 3)

    def _by_rows(self, grid: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
        rows = grid.flatten(0, 2)
        done = [layer(chunk) for chunk in rows.split(self.decode_rows)]
        return torch.cat(done).unflatten(0, grid.shape[:3])


def _normed(rows: Tensor) -> Tensor:
    """Rows * rsqrt(mean(rows^2) + eps) over the last dimension; the weight is folded away."""
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float32)
    scale = torch.rsqrt(norm.square_().div_(rows.shape[-1]).add_(CHANNEL_NORM_EPS))
    return (rows * scale).to(rows.dtype)


def _wide(parameter: Tensor) -> Tensor:
    return parameter.detach().cpu().double()


def _pixel_layer(encoder: Encoder, place: Placement) -> Affine:
    """The patch conv on rows of (pixel - 128) / 128, which half precision holds exactly.

    pixel / 127.5 - 1 = u * 128 / 127.5 + 0.5 / 127.5 for u = (pixel - 128) / 128.
    """
    conv = cast(torch.nn.Conv2d, encoder.initial[0])
    assert conv.bias is not None
    weight = _wide(conv.weight).permute(0, 2, 3, 1).flatten(1)  # columns are (row, col, channel)
    bias = _wide(conv.bias) + weight.sum(1) * (0.5 / 127.5)
    return place.affine(weight * (128 / 127.5), bias)


def _conv1x1(conv: torch.nn.Module, place: Placement, norm: RMSNorm | None = None) -> Affine:
    conv = cast(torch.nn.Conv2d, conv)
    assert conv.bias is not None
    weight = _wide(conv.weight).flatten(1)
    if norm is not None:
        weight = weight * _wide(norm.weight)
    return place.affine(weight, _wide(conv.bias))


def _geglu(block: GegluBlock, place: Placement) -> Geglu:
    return Geglu(
        _conv1x1(block.mlp.conv_up, place, block.norm), _conv1x1(block.mlp.conv_down, place)
    )


def _spatial(block: SpatialBlock, place: Placement) -> Spatial:
    conv = cast(torch.nn.Conv2d, block.mlp[2])
    assert conv.bias is not None
    kernel = place.put(_wide(conv.weight)).contiguous(memory_format=torch.channels_last)
    return Spatial(_conv1x1(block.mlp[0], place, block.norm), kernel, place.put(_wide(conv.bias)))


def _projection(projection: Projection, place: Placement) -> tuple[Affine, Affine]:
    return _conv1x1(projection.model[0], place), _conv1x1(projection.model[2], place)


def _head(decoder: Decoder, place: Placement) -> Head:
    field = cast(NeuralField, decoder.nerf[0])
    size = field.head_width
    positions, last = _wide(decoder.positions)[0], _wide(decoder.last.weight)  # (P, s), (3, s)
    scale = torch.rsqrt(positions.square().mean(-1, keepdim=True) + field.norm.eps)
    weight, bias = _wide(field.param_gen.weight), _wide(field.param_gen.bias)
    first, second = weight.split(size * size)
    first_bias, second_bias = bias.split(size * size)
    short = torch.einsum("ijk,cj->ick", second.unflatten(0, (size, size)), last)
    short = short.flatten(0, 1)  # outputs ordered (row of L2, colour)
    short_bias = second_bias.unflatten(0, (size, size)) @ last.T
    return Head(
        place.affine(torch.cat((first, short)), torch.cat((first_bias, short_bias.flatten()))),
        place.put(positions * scale * _wide(field.norm.weight)),
        place.put(positions @ last.T + _wide(decoder.last.bias)),
    )

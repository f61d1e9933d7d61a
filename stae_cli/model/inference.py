"""The inference form: the reference network's function, rearranged for speed.

Activations are token matrices (N, channels), one row per patch, so that every 1x1 conv is one
matrix product and pictures of any sizes share it. Built from a reference model: norm weights,
pixel scaling and the head's last layer are folded into their neighbours in float64. Rows pass in
chunks that stay in the cache from one layer to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear, silu

from stae_cli.model.affine import Affine, Placement
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
from stae_cli.model.winograd import TILE, winograd

# Rows that go through the encoder at once. Always exactly this many (the last chunk is filled
# up), so that a row meets the same kernels whatever it is packed with: its latent then has the
# same bytes alone and in company.
ENCODE_ROWS = {"cpu": 512, "cuda": 16384, "mps": 4096}
DECODE_ROWS = {"cpu": 512, "cuda": 16384, "mps": 4096}


@dataclass(frozen=True)
class Geglu:
    """x + down(gate * tanh-GELU(act)) of norm(x), the norm's weight folded into gate and act."""

    gate: Affine
    act: Affine
    down: Affine

    def __call__(self, rows: Tensor) -> Tensor:
        normed = _normed(rows)
        hidden = self.gate.times(normed, self.act.gelu(normed, "tanh"))
        return self.down.plus(hidden, rows)


class Mixer(Protocol):
    """A 3x3 convolution with zero padding 1 between token grids (B, h, w, C) of any sizes."""

    def add_to(self, grids: Sequence[Tensor], hiddens: Sequence[Tensor]) -> None:
        """Adds the convolution of each of `hiddens` to its grid."""


@dataclass(frozen=True)
class Conv:
    """torch's own convolution."""

    kernel: Tensor  # (C, C, 3, 3), channels last
    bias: Tensor  # (C,)

    def add_to(self, grids: Sequence[Tensor], hiddens: Sequence[Tensor]) -> None:
        """Adds the convolution of each of `hiddens` to its grid, all (B, h, w, C)."""
        for grid, hidden in zip(grids, hiddens, strict=True):
            mixed = conv2d(hidden.permute(0, 3, 1, 2), self.kernel, self.bias, padding=1)
            grid += mixed.permute(0, 2, 3, 1)


@dataclass(frozen=True)
class Pair:
    """A spatial block, x + mixer(tanh-GELU(inner(norm(x)))), and the GEGLU block behind it."""

    inner: Affine
    mixer: Mixer
    geglu: Geglu


@dataclass(frozen=True)
class Head:
    """The neural field with everything that does not depend on the patch computed once.

    The last layer is folded into the generator of the second matrix, whose 32 columns become 3.
    Both matrices are generated transposed: their columns, which are normalised, then lie together.
    """

    generator: Affine  # width -> head_width^2 + 3 * head_width
    encoded: Tensor  # (P, head_width): norm(positions)
    constant: Tensor  # (3, P): positions through the last layer, its bias included

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows (N, width) -> (N, 3, P)."""
        size = self.encoded.shape[1]
        generated = self.generator(rows)
        first, second = generated.split((size * size, 3 * size), dim=-1)
        columns = first.reshape(-1, size)
        norms = torch.linalg.vector_norm(columns, dim=-1, keepdim=True, dtype=torch.float32)
        columns = (columns / norms.clamp_min_(COLUMN_NORM_FLOOR)).to(rows.dtype)
        hidden = linear(columns, self.encoded)  # (N * head_width, P)
        fields = silu(hidden, inplace=True).view(len(rows), size, -1)
        return torch.baddbmm(self.constant, second.unflatten(-1, (3, size)), fields)


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
        self.dtype = dtype
        self.patch = sizes.patch
        self.encode_rows = ENCODE_ROWS[device.type]
        self.decode_rows = DECODE_ROWS[device.type]
        self._embed = _pixel_layer(encoder, place)
        self._encoder_blocks = [_geglu(cast(GegluBlock, b), place) for b in encoder.blocks]
        self._to_latent = _projection(encoder.out, place)
        self._from_latent = _projection(decoder.conv_in, place)
        blocks = list(decoder.blocks)
        self._pairs = [
            _pair(cast(SpatialBlock, spatial), cast(GegluBlock, geglu), place)
            for spatial, geglu in zip(blocks[::2], blocks[1::2], strict=True)
        ]
        self._head = _head(decoder, place)
        # Tiles that are cut at multiples of Winograd's then compute the same numbers as the whole.
        self.alignment = 1 if isinstance(self._pairs[0].mixer, Conv) else TILE
        self.halo = -(-sizes.halo // self.alignment) * self.alignment

    def encode(self, patches: Iterable[Tensor]) -> Tensor:
        """Patches (n, patch * patch * 3), uint8 or float in [-1, 1], in any portions.

        Returns:
            Latents (N, C) of all of them in order.
        """
        chunks = _portions(patches, self.encode_rows)
        return torch.cat([self._encode_chunk(chunk) for chunk in chunks])

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
        return outer(inner.gelu(rows, "none"))[:count]

    def _centred(self, patches: Tensor) -> Tensor:
        """uint8 or float in [-1, 1] -> (pixel - 128) / 128, exact for uint8 in every dtype."""
        if patches.dtype == torch.uint8:
            return patches.to(self.dtype).sub_(128).div_(128)
        return patches.float().mul(127.5 / 128).sub_(0.5 / 128).to(self.dtype)

    def decode(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Latents (h, w, C) of any sizes -> (h * patch, w * patch, 3) each, unclamped.

        They are about [-1, 1]. Neighbours of equal size in the list are computed fastest.
        """
        rows = self._features(latents)
        pixels = rows.new_empty(len(rows), self.patch**2, 3)
        for part in self._slices(rows):
            pixels[part] = self._head(rows[part]).mT
        return self._as_images(pixels, latents)

    def decode_levels(self, latents: Sequence[Tensor]) -> tuple[list[Tensor], list[bool]]:
        """Latents (h, w, C) of any sizes -> uint8 pixels of each, rounded to nearest.

        Also returns whether each was finite before it was rounded.
        """
        rows = self._features(latents)
        levels = rows.new_empty(len(rows), self.patch**2, 3, dtype=torch.uint8)
        finite = rows.new_empty(len(rows), dtype=torch.bool)
        for part in self._slices(rows):
            pixels = self._head(rows[part])
            finite[part] = pixels.isfinite().flatten(1).all(1)
            levels[part] = pixels.float().add_(1).mul_(127.5).round_().clamp_(0, 255).mT
        counts = [len(latent) * latent.shape[1] for latent in latents]
        good = torch.stack([part.all() for part in finite.split(counts)])
        return self._as_images(levels, latents), good.tolist()

    def _features(self, latents: Sequence[Tensor]) -> Tensor:
        """Latents (h, w, C) -> what the head paints from, (N, width) for all their positions."""
        inner, outer = self._from_latent
        rows = torch.cat([latent.flatten(0, 1) for latent in latents])
        grid, hidden = self._empty(len(rows), outer), self._empty(len(rows), outer)
        grids, hiddens = _by_size(grid, latents), _by_size(hidden, latents)
        for part in self._slices(rows):
            grid[part] = outer(inner.gelu(rows[part], "none"))
            hidden[part] = self._pairs[0].inner.gelu(_normed(grid[part]), "tanh")
        for pair, following in zip(self._pairs, [*self._pairs[1:], None], strict=True):
            pair.mixer.add_to(grids, hiddens)
            for part in self._slices(rows):
                grid[part] = pair.geglu(grid[part])
                if following is not None:
                    hidden[part] = following.inner.gelu(_normed(grid[part]), "tanh")
        return grid

    def _empty(self, rows: int, layer: Affine) -> Tensor:
        return torch.empty(rows, len(layer.bias), dtype=self.dtype, device=layer.bias.device)

    def _slices(self, rows: Tensor) -> Iterator[slice]:
        for first in range(0, len(rows), self.decode_rows):
            yield slice(first, first + self.decode_rows)

    def _as_images(self, pixels: Tensor, latents: Sequence[Tensor]) -> list[Tensor]:
        """Pixels (N, patch^2, 3) of all positions to images (h * patch, w * patch, 3)."""
        side = self.patch
        sizes = [(latent.shape[0], latent.shape[1]) for latent in latents]
        parts = pixels.split([height * width for height, width in sizes])
        return [
            part.view(height, width, side, side, 3)
            .transpose(1, 2)
            .reshape(height * side, width * side, 3)
            for part, (height, width) in zip(parts, sizes, strict=True)
        ]


def _by_size(rows: Tensor, latents: Sequence[Tensor]) -> list[Tensor]:
    """Views (B, h, w, width) of the rows, neighbours of equal size as one."""
    views: list[Tensor] = []
    first = 0
    for (height, width), equal in groupby(latents, key=lambda latent: latent.shape[:2]):
        count = len(list(equal))
        last = first + count * height * width
        views.append(rows[first:last].view(count, height, width, -1))
        first = last
    return views


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
    up = block.mlp.conv_up
    assert up.bias is not None
    gate, act = (_wide(up.weight).flatten(1) * _wide(block.norm.weight)).chunk(2)
    gate_bias, act_bias = _wide(up.bias).chunk(2)
    return Geglu(
        place.affine(gate, gate_bias),
        place.affine(act, act_bias),
        _conv1x1(block.mlp.conv_down, place),
    )


def _pair(spatial: SpatialBlock, geglu: GegluBlock, place: Placement) -> Pair:
    inner = _conv1x1(spatial.mlp[0], place, spatial.norm)
    return Pair(inner, _mixer(cast(torch.nn.Conv2d, spatial.mlp[2]), place), _geglu(geglu, place))


def _mixer(conv: torch.nn.Conv2d, place: Placement) -> Mixer:
    """Winograd's transforms pay on the CPU, and cost more digits than half precision has."""
    assert conv.bias is not None
    kernel, bias = _wide(conv.weight), _wide(conv.bias)
    if place.device.type == "cpu" and place.dtype == torch.float32:
        return winograd(kernel, bias, place)
    return Conv(place.put(kernel).contiguous(memory_format=torch.channels_last), place.put(bias))


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
    # Generated transposed: (column, row) of the first matrix, (colour, row) of the second.
    first = first.unflatten(0, (size, size)).transpose(0, 1).flatten(0, 1)
    first_bias = first_bias.view(size, size).T.flatten()
    short = torch.einsum("ijk,cj->cik", second.unflatten(0, (size, size)), last).flatten(0, 1)
    short_bias = (last @ second_bias.unflatten(0, (size, size)).T).flatten()
    return Head(
        place.affine(torch.cat((first, short)), torch.cat((first_bias, short_bias))),
        place.put(positions * scale * _wide(field.norm.weight)),
        place.put((positions @ last.T + _wide(decoder.last.bias)).T),
    )

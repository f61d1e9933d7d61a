"""The inference form's layers: each holds folded weights and works on token rows or grids."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear, silu

from stae_cli.codec.cpu.affine import Affine
from stae_cli.network.stupid_ae import CHANNEL_NORM_EPS, COLUMN_NORM_FLOOR

Layer = Callable[[Tensor], Tensor]  # rows (N, width) to as many
Size = tuple[int, int]  # height and width

COLOURS = 3


@dataclass(frozen=True)
class Chain:
    """Layers one after another, and what their rows lack in the end.

    `lacking` (width,), float64 on the CPU, belongs to every row and was added to none: the next
    layer's bias makes up for it.
    """

    layers: Sequence[Layer]
    lacking: Tensor | None = None


@dataclass(frozen=True)
class Geglu:
    """x + down(gate * tanh-GELU(act)) of norm(x), the norm's weight folded into gate and act."""

    gate: Affine
    act: Affine
    down: Affine

    def __call__(self, rows: Tensor) -> Tensor:
        level = normed(rows)
        hidden = self.gate.times(level, self.act.gelu(level, "tanh"))
        return self.down.plus(hidden, rows)


@dataclass(frozen=True)
class Project:
    """Two layers with an exact GELU between them."""

    inner: Affine
    outer: Affine

    def __call__(self, rows: Tensor) -> Tensor:
        return self.outer(self.inner.gelu(rows, "none"))


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
class PointPair:
    """The same two blocks where the spatial one's last convolution is 1x1: rows never mix."""

    inner: Affine
    outer: Affine
    geglu: Geglu

    def __call__(self, rows: Tensor) -> Tensor:
        return self.geglu(self.outer.plus(self.inner.gelu(normed(rows), "tanh"), rows))


class Head(ABC):
    """Paints patches from their features."""

    @property
    @abstractmethod
    def side(self) -> int:
        """Pixels on a side of a patch."""

    @abstractmethod
    def painted(self, rows: Tensor) -> Tensor:
        """Rows (N, width) -> (N, 3, P), unclamped."""

    def paint(
        self, rows: Tensor, sizes: Sequence[Size], *, levels: bool, at_once: int
    ) -> tuple[Tensor, Tensor | None]:
        """The pixels of images, as `images` takes them, all in one tensor.

        Args:
            rows: (N, width), features of all positions in order.
            sizes: how many positions each image is high and wide.
            levels: whether pixels are rounded to uint8; else they are unclamped, of the rows'
                dtype.
            at_once: rows to paint together.

        Returns:
            Pixels, and with `levels` (N,) whether all was finite before it was rounded.
        """
        shape = (len(rows), self.side**2, COLOURS)
        if not levels:
            pixels = rows.new_empty(shape)
            for part in chunks(rows, at_once):
                pixels[part] = self.painted(rows[part]).mT
            return pixels, None
        pixels = rows.new_empty(shape, dtype=torch.uint8)
        finite = rows.new_empty(len(rows), dtype=torch.bool)
        for part in chunks(rows, at_once):
            wide = self.painted(rows[part])
            finite[part] = wide.isfinite().flatten(1).all(1)
            pixels[part] = wide.float().add_(1).mul_(127.5).round_().clamp_(0, 255).mT
        return pixels, finite

    def images(self, pixels: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
        """What `paint` gives, as images (h * side, w * side, 3)."""
        side = self.side
        parts = pixels.split([height * width for height, width in sizes])
        return [
            part.view(height, width, side, side, COLOURS)
            .transpose(1, 2)
            .reshape(height * side, width * side, COLOURS)
            for part, (height, width) in zip(parts, sizes, strict=True)
        ]


@dataclass(frozen=True)
class ShuffleHead(Head):
    """One layer, its outputs ordered by channel, then by position in the patch."""

    layer: Affine

    @property
    def side(self) -> int:
        """Pixels on a side of a patch."""
        return math.isqrt(len(self.layer.bias) // COLOURS)

    def painted(self, rows: Tensor) -> Tensor:
        """Rows (N, width) -> (N, 3, P), unclamped."""
        return self.layer(rows).unflatten(-1, (COLOURS, -1))


@dataclass(frozen=True)
class FieldHead(Head):
    """The neural field with everything that does not depend on the patch computed once.

    The last layer is folded into the generator of the second matrix, whose 32 columns become 3.
    Both matrices are generated transposed: their columns, which are normalised, then lie together.
    """

    generator: Affine  # width -> head_width^2 + 3 * head_width
    encoded: Tensor  # (P, head_width): norm(positions)
    constant: Tensor  # (3, P): positions through the last layer, its bias included

    @property
    def side(self) -> int:
        """Pixels on a side of a patch."""
        return math.isqrt(len(self.encoded))

    def painted(self, rows: Tensor) -> Tensor:
        """Rows (N, width) -> (N, 3, P), unclamped."""
        size = self.encoded.shape[1]
        generated = self.generator(rows)
        first, second = generated.split((size * size, 3 * size), dim=-1)
        columns = first.reshape(-1, size)
        norms = torch.linalg.vector_norm(columns, dim=-1, keepdim=True, dtype=torch.float32)
        columns = (columns / norms.clamp_min_(COLUMN_NORM_FLOOR)).to(rows.dtype)
        hidden = linear(columns, self.encoded)  # (N * head_width, P)
        fields = silu(hidden, inplace=True).view(len(rows), size, -1)
        return torch.baddbmm(self.constant, second.unflatten(-1, (3, size)), fields)


def patches_of(image: Tensor, size: int) -> Tensor:
    """The patches (n, size * size * 3) of an image (H, W, 3), each by row, column and channel.

    Also of images (B, H, W, 3), one after another.
    """
    grid = image.unflatten(-2, (-1, size)).unflatten(-4, (-1, size))
    return grid.transpose(-4, -3).flatten(-3).flatten(0, -2)


def centred(dtype: torch.dtype, patches: Tensor) -> Tensor:
    """uint8 or float in [-1, 1] -> (pixel - 128) / 128, exact for uint8 in every dtype."""
    if patches.dtype == torch.uint8:
        return patches.to(dtype).sub_(128).div_(128)
    return patches.float().mul(127.5 / 128).sub_(0.5 / 128).to(dtype)


def normed(rows: Tensor) -> Tensor:
    """Rows * rsqrt(mean(rows^2) + eps) over the last dimension; the weight is folded away."""
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float32)
    scale = torch.rsqrt(norm.square_().div_(rows.shape[-1]).add_(CHANNEL_NORM_EPS))
    return (rows * scale).to(rows.dtype)


def chunks(rows: Tensor, size: int) -> Iterator[slice]:
    """All of the rows in order, `size` at a time, the last time fewer."""
    for first in range(0, len(rows), size):
        yield slice(first, first + size)

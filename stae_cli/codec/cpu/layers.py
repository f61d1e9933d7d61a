"""The plain form's layers, trunks and heads: folded weights that work on token rows or grids.

They are torch's own functions, or oneDNN's, and run on every device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear, silu

from stae_cli.codec.cpu.affine import Affine
from stae_cli.codec.cpu.parts import Parts
from stae_cli.codec.tensors import COLOURS
from stae_cli.network.stupid_ae import CHANNEL_NORM_EPS, COLUMN_NORM_FLOOR

Layer = Callable[[Tensor], Tensor]  # rows (N, width) to as many
Size = tuple[int, int]  # height and width


@dataclass(frozen=True)
class Geglu:
    """x + down(gate * tanh-GELU(act)) of norm(x), the norm's weight folded into gate and act."""

    gate: Affine
    act: Affine
    down: Affine

    def __call__(self, rows: Tensor) -> Tensor:
        given = normed(rows)
        hidden = self.gate.times(given, self.act.gelu(given, "tanh"))
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

    @property
    def alignment(self) -> int:
        """Tiles that are cut at multiples of this compute the same numbers as the whole."""

    def add_to(self, grids: Sequence[Tensor], hiddens: Sequence[Tensor]) -> None:
        """Adds the convolution of each of `hiddens` to its grid, all (B, h, w, C)."""


@dataclass(frozen=True)
class Conv:
    """torch's own convolution."""

    kernel: Tensor  # (C, C, 3, 3), channels last
    bias: Tensor  # (C,)
    alignment: ClassVar[int] = 1

    def add_to(self, grids: Sequence[Tensor], hiddens: Sequence[Tensor]) -> None:
        for grid, hidden in zip(grids, hiddens, strict=True):
            mixed = conv2d(hidden.permute(0, 3, 1, 2), self.kernel, self.bias, padding=1)
            grid += mixed.permute(0, 2, 3, 1)


@dataclass(frozen=True)
class Pair:
    """A spatial block, x + mixer(tanh-GELU(inner(norm(x)))), and the GEGLU block behind it."""

    inner: Affine
    mixer: Mixer
    geglu: Geglu

    def entered(self, rows: Tensor) -> Tensor:
        """What the mixer is given."""
        return self.inner.gelu(normed(rows), "tanh")


@dataclass(frozen=True)
class PointPair:
    """The same two blocks where the spatial one's last convolution is 1x1: rows never mix."""

    inner: Affine
    outer: Affine
    geglu: Geglu

    def __call__(self, rows: Tensor) -> Tensor:
        return self.geglu(self.outer.plus(self.inner.gelu(normed(rows), "tanh"), rows))


class Trunk(Protocol):
    """The layers between the latents and the head."""

    @property
    def alignment(self) -> int:
        """Tiles that are cut at multiples of this compute the same numbers as the whole."""

    def __call__(self, latents: Sequence[Tensor]) -> Tensor:
        """Latents (h, w, C) of any sizes -> (N, width) for all their positions in order."""


class PointTrunk:
    """A trunk in which no position sees another: rows go through all layers while in cache."""

    alignment = 1

    def __init__(self, layers: Sequence[Layer], parts: Parts) -> None:
        self._layers, self._parts = layers, parts

    def __call__(self, latents: Sequence[Tensor]) -> Tensor:
        rows = torch.cat([latent.flatten(0, 1) for latent in latents])
        some = (rows[part] for part in self._parts.slices(len(rows)))
        return torch.cat(self._parts.each(partial(through, self._layers), some))


class SpatialTrunk:
    """A trunk with 3x3 convolutions, between which rows pass in parts."""

    def __init__(self, project: Project, pairs: Sequence[Pair], parts: Parts) -> None:
        self._project, self._pairs, self._parts = project, pairs, parts
        self.alignment = pairs[0].mixer.alignment

    def __call__(self, latents: Sequence[Tensor]) -> Tensor:
        rows = torch.cat([latent.flatten(0, 1) for latent in latents])
        outer = self._project.outer
        grid, hidden = empty_rows(rows, outer), empty_rows(rows, outer)
        grids, hiddens = by_size(grid, latents), by_size(hidden, latents)

        def enter(part: slice) -> None:
            grid[part] = self._project(rows[part])
            hidden[part] = self._pairs[0].entered(grid[part])

        self._parts.each(enter, self._parts.slices(len(rows)))
        for pair, following in zip(self._pairs, [*self._pairs[1:], None], strict=True):
            pair.mixer.add_to(grids, hiddens)

            def leave(part: slice, pair: Pair = pair, following: Pair | None = following) -> None:
                grid[part] = pair.geglu(grid[part])
                if following is not None:
                    hidden[part] = following.entered(grid[part])

            self._parts.each(leave, self._parts.slices(len(rows)))
        return grid


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
        self, rows: Tensor, sizes: Sequence[Size], *, levels: bool, parts: Parts
    ) -> tuple[Tensor, Tensor | None]:
        """The pixels of images, as `images` takes them, all in one tensor.

        Args:
            rows: (N, width), features of all positions in order.
            sizes: how many positions each image is high and wide.
            levels: whether pixels are rounded to uint8; else they are unclamped, of the rows'
                dtype.
            parts: how the rows are divided.

        Returns:
            Pixels, and with `levels` (N,) whether all was finite before it was rounded.
        """
        pixels = rows.new_empty(
            len(rows), self.side**2, COLOURS, dtype=torch.uint8 if levels else rows.dtype
        )
        finite = rows.new_empty(len(rows), dtype=torch.bool) if levels else None

        def paint(part: slice) -> None:
            wide = self.painted(rows[part])
            if finite is None:
                pixels[part] = wide.mT
                return
            finite[part] = wide.isfinite().flatten(1).all(1)
            pixels[part] = wide.float().add_(1).mul_(127.5).round_().clamp_(0, 255).mT

        parts.each(paint, parts.slices(len(rows)))
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
        return math.isqrt(len(self.layer.bias) // COLOURS)

    def painted(self, rows: Tensor) -> Tensor:
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
        return math.isqrt(len(self.encoded))

    def painted(self, rows: Tensor) -> Tensor:
        size = self.encoded.shape[1]
        generated = self.generator(rows)
        first, second = generated.split((size * size, 3 * size), dim=-1)
        columns = first.reshape(-1, size)
        norms = torch.linalg.vector_norm(columns, dim=-1, keepdim=True, dtype=torch.float32)
        columns = (columns / norms.clamp_min_(COLUMN_NORM_FLOOR)).to(rows.dtype)
        hidden = linear(columns, self.encoded)  # (N * head_width, P)
        fields = silu(hidden, inplace=True).view(len(rows), size, -1)
        return torch.baddbmm(self.constant, second.unflatten(-1, (3, size)), fields)


def normed(rows: Tensor) -> Tensor:
    """Rows * rsqrt(mean(rows^2) + eps) over the last dimension; the weight is folded away."""
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float32)
    scale = torch.rsqrt(norm.square_().div_(rows.shape[-1]).add_(CHANNEL_NORM_EPS))
    return (rows * scale).to(rows.dtype)


def empty_rows(rows: Tensor, layer: Affine) -> Tensor:
    """Uninitialised memory for the layer's output, one row for each of `rows`."""
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


def through(layers: Sequence[Layer], rows: Tensor) -> Tensor:
    """Rows through all layers in order."""
    for layer in layers:
        rows = layer(rows)
    return rows

"""The fused form's layers: matrix products with Triton kernels in between.

Blocks add to their rows in place, inside the products. The biases of those products are deferred:
the next norm adds their sum, and what follows the last block has it in its own bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from stae_cli.codec.cpu.affine import Affine
from stae_cli.codec.cpu.layers import FieldHead, Project, Size, by_size, empty_rows
from stae_cli.codec.cpu.parts import Parts
from stae_cli.codec.cuda import kernels
from stae_cli.codec.tensors import COLOURS


@dataclass(frozen=True)
class GegluStep:
    """A GEGLU block; the up projection makes the gate and what it gates at once."""

    up: Affine
    down: Tensor  # (width, hidden)
    deferred: Tensor  # (width,) float32, the biases that were not added to the rows

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows (N, width), which are added to in place."""
        return self.add_to(rows, kernels.normed(rows, self.deferred))

    def add_to(self, rows: Tensor, normed: Tensor) -> Tensor:
        """The same, given the normed rows."""
        return rows.addmm_(kernels.geglu(self.up(normed)), self.down.T)


@dataclass(frozen=True)
class PointStep:
    """A spatial block whose last convolution is 1x1."""

    inner: Affine
    outer: Tensor  # (width, width)
    deferred: Tensor  # (width,) float32

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows (N, width), which are added to in place."""
        hidden = torch.empty_like(rows)
        write_tanh_gelu(self.inner, kernels.normed(rows, self.deferred), hidden)
        return rows.addmm_(hidden, self.outer.T)


@dataclass(frozen=True)
class FusedPair:
    """A spatial block and the GEGLU block behind it."""

    inner: Affine
    deferred: Tensor  # (width,) float32
    kernel: Tensor  # (C, C, 3, 3), channels last
    geglu: GegluStep

    def enter(self, grid: Tensor, hidden: Tensor) -> None:
        """What the convolution is given, of some rows of the grid, into the same of `hidden`."""
        write_tanh_gelu(self.inner, kernels.normed(grid, self.deferred), hidden)

    def leave(self, grid: Tensor, mixed: Tensor) -> None:
        """Adds some rows of what was mixed to the grid, and what the GEGLU block makes of them."""
        self.geglu.add_to(grid, kernels.add_normed(grid, mixed, self.geglu.deferred))


def convolved(hiddens: Sequence[Tensor], kernel: Tensor) -> Tensor:
    """The convolution of each (B, h, w, C), without a bias -> (N, C) of all of them."""
    parts = [
        conv2d(hidden.permute(0, 3, 1, 2), kernel, padding=1).permute(0, 2, 3, 1)
        for hidden in hiddens
    ]
    rows = [part.reshape(-1, part.shape[-1]) for part in parts]
    # A backend that gives another layout than it was given makes views of another order.
    return rows[0].contiguous() if len(rows) == 1 else torch.cat(rows)


class FusedTrunk:
    """A trunk with 3x3 convolutions."""

    alignment = 1

    def __init__(self, project: Project, pairs: Sequence[FusedPair], parts: Parts) -> None:
        self._project, self._pairs, self._parts = project, pairs, parts

    def __call__(self, latents: Sequence[Tensor]) -> Tensor:
        rows = torch.cat([latent.flatten(0, 1) for latent in latents])
        grid = empty_rows(rows, self._project.outer)
        hidden = torch.empty_like(grid)
        first, *others = self._pairs
        for part in self._parts.slices(len(rows)):
            write(self._project.outer, self._project.inner.gelu(rows[part], "none"), grid[part])
            first.enter(grid[part], hidden[part])
        for pair, following in zip(self._pairs, [*others, None], strict=True):
            mixed = convolved(by_size(hidden, latents), pair.kernel)
            for part in self._parts.slices(len(rows)):
                pair.leave(grid[part], mixed[part])
                if following is not None:
                    following.enter(grid[part], hidden[part])
            del mixed  # before the next one is made: they are what memory is full of
        return grid


@dataclass(frozen=True)
class FusedFieldHead(FieldHead):
    """The neural field, painted by one kernel behind its generator, where the image has it."""

    def paint(
        self, rows: Tensor, sizes: Sequence[Size], *, levels: bool, parts: Parts
    ) -> tuple[Tensor, Tensor | None]:
        """See `Head`; the pixels lie one image after another."""
        pixels = len(self.encoded) * COLOURS
        canvas = rows.new_empty(len(rows) * pixels, dtype=torch.uint8 if levels else rows.dtype)
        finite = kernels.empty_finite(rows, self.encoded)
        groups = _groups(sizes)
        for part in parts.slices(len(rows)):
            made = self.generator(rows[part])
            for start, stop, across in groups:
                begin, end = max(part.start, start), min(part.stop, stop)
                if begin < end:
                    kernels.paint(
                        made[begin - part.start : end - part.start], self.encoded, self.constant,
                        canvas[start * pixels : stop * pixels], finite[begin:end],
                        across=across, first=begin - start,
                    )  # fmt: skip
        return canvas, finite.all(1) if levels else None

    def images(self, pixels: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
        shapes = [(height * self.side, width * self.side, COLOURS) for height, width in sizes]
        parts = pixels.split([math.prod(shape) for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _groups(sizes: Sequence[Size]) -> list[tuple[int, int, int]]:
    """Neighbours of equal width as one: where their rows start and stop, and the width."""
    groups = []
    start = 0
    for across, equal in groupby(sizes, key=lambda size: size[1]):
        stop = start + sum(height * width for height, width in equal)
        groups.append((start, stop, across))
        start = stop
    return groups


def write(layer: Affine, rows: Tensor, result: Tensor) -> None:
    """The layer's output into `result` (N, outputs)."""
    torch.addmm(layer.bias, rows, layer.weight.T, out=result)


def write_tanh_gelu(layer: Affine, rows: Tensor, result: Tensor) -> None:
    """The tanh-GELU of the layer's output into `result` (N, outputs)."""
    write(layer, rows, result)
    torch.ops.aten.gelu_(result, approximate="tanh")

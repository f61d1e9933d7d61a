"""3x3 convolution by Winograd's minimal filtering F(4x4, 3x3): a quarter of the multiplications.

A tile of 6x6 inputs becomes 36 numbers per channel, 36 matrix products mix the channels, and a
transform back gives 4x4 outputs (Lavin and Gray, arXiv 1509.09308). The Toom-Cook points are
0, +-5/8, +-3/2 and infinity: in float32 the largest error is a quarter of that of the textbook's
0, +-1, +-2, and their squares are exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from stae_cli.codec.cpu.affine import Affine, Placement
from stae_cli.codec.cpu.parts import Parts

TILE = 4  # outputs on a side of a tile; its inputs have one more on each side
POINTS = TILE + 2
A, B = 0.625, 1.5
GROUPS = 2

# Tiles that are transformed together: enough for the products, few enough for the cache.
TILES_AT_ONCE = 384
LEAST_TILES = 32  # fewer use the products badly


@dataclass(frozen=True)
class Winograd:
    """A 3x3 convolution with zero padding 1 on a token grid, as matrix products.

    The channels are summed up in groups: float32 sums of fewer terms round less.
    """

    taps: Sequence[Sequence[Affine]]  # per group of input channels 36, row-major over the points
    parts: Parts  # of the tiles
    alignment: ClassVar[int] = TILE

    def add_to(self, grids: Sequence[Tensor], hiddens: Sequence[Tensor]) -> None:
        # Grids of several sizes share the products, so that small ones do not make small products.
        tiles = self.parts.rows_of(sum(map(_tiles, hiddens)))
        self.parts.each(self._add, _portions(grids, hiddens, tiles))

    def _add(self, parts: Sequence[_Part]) -> None:
        slabs = [_slab(part.hidden, part.rows) for part in parts]  # (g, 4k + 2, 4t + 2, C)
        shapes = [(s.shape[0], s.shape[1] // TILE, s.shape[2] // TILE) for s in slabs]
        mixed = self._mixed(slabs)
        counts = [images * down * across for images, down, across in shapes]
        by_part = zip(*(product.split(counts) for product in mixed), strict=True)
        for part, shape, products in zip(parts, shapes, by_part, strict=True):
            target = part.grid[:, part.rows]
            height, width = target.shape[1:3]
            target += _assembled(products, shape)[:, :height, :width]

    def _mixed(self, slabs: Sequence[Tensor]) -> list[Tensor]:
        """The products (tiles of all slabs, C) for the 36 points."""
        groups = zip(*(slab.chunk(len(self.taps), dim=-1) for slab in slabs), strict=True)
        (first, *others) = zip(self.taps, groups, strict=True)
        mixed = [tap(rows) for tap, rows in zip(first[0], _points(first[1]), strict=True)]
        for taps, group in others:
            mixed = [
                tap.plus(rows, so_far)
                for tap, rows, so_far in zip(taps, _points(group), mixed, strict=True)
            ]
        return mixed


def winograd(kernel: Tensor, bias: Tensor, place: Placement, parts: Parts) -> Winograd:
    """The convolution of a float64 kernel (O, I, 3, 3) and bias (O,).

    The bias is spread over the products: it is what a kernel of its centre alone makes of ones.
    `parts` says how tiles are divided.
    """
    to_points = _kernel_to_points()
    weights = torch.einsum("iu,jv,ocuv->ijoc", to_points, to_points, kernel).flatten(0, 1)
    ones = torch.stack(_to_points(list(torch.ones(POINTS, dtype=torch.float64))))
    constant = to_points[:, 1] * ones
    biases = torch.outer(constant, constant).flatten()[:, None] * bias
    groups = weights.chunk(GROUPS, dim=-1)
    shares = (biases, *[torch.zeros_like(biases)] * (len(groups) - 1))
    taps = [
        [place.affine(tap, b) for tap, b in zip(group, share, strict=True)]
        for group, share in zip(groups, shares, strict=True)
    ]
    return Winograd(taps, replace(parts, least=LEAST_TILES))


def _kernel_to_points() -> Tensor:
    """(6, 3): the kernel's polynomial at each point over the product of the points' differences."""
    points = [0.0, A, -A, B, -B]
    rows = []
    for point in points:
        product = 1.0
        for other in points:
            product *= point - other if other != point else 1.0
        rows.append([1 / product, point / product, point * point / product])
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)


def _to_points(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Six inputs along one axis to their values at the six points."""
    aa, bb = A * A, B * B
    d = inputs
    near = [torch.sub(d[k + 2], d[k], alpha=aa) for k in range(4)]
    odd, even = torch.sub(d[3], d[1], alpha=bb), torch.sub(d[4], d[2], alpha=bb)
    return [
        torch.sub(near[2], near[0], alpha=bb),
        torch.add(even, odd, alpha=A),
        torch.sub(even, odd, alpha=A),
        torch.add(near[2], near[1], alpha=B),
        torch.sub(near[2], near[1], alpha=B),
        torch.sub(near[3], near[1], alpha=bb),
    ]


def _from_points(m: Sequence[Tensor]) -> list[Tensor]:
    """Values at the six points along one axis to four outputs; overwrites some of them."""
    sum_a, difference_a = m[1] + m[2], m[1].sub_(m[2])
    sum_b, difference_b = m[3] + m[4], m[3].sub_(m[4])
    first = torch.add(sum_a, sum_b).add_(m[0])
    second = (difference_a * A).add_(difference_b, alpha=B)
    third = sum_a.mul_(A * A).add_(sum_b, alpha=B * B)
    fourth = torch.add(m[5], difference_a, alpha=A**3).add_(difference_b, alpha=B**3)
    return [first, second, third, fourth]


@dataclass(frozen=True)
class _Part:
    """Some images of equal size, and the rows of them that are computed."""

    grid: Tensor
    hidden: Tensor
    rows: slice

    @property
    def tiles(self) -> int:
        """How many there are, the incomplete ones included."""
        return _tiles(self.hidden[:, self.rows])


def _tiles(hidden: Tensor) -> int:
    """How many tiles images (B, h, w, C) have, the incomplete ones included."""
    images, height, width = hidden.shape[:3]
    return images * -(-height // TILE) * -(-width // TILE)


def _portions(
    grids: Sequence[Tensor], hiddens: Sequence[Tensor], tiles: int
) -> Iterator[list[_Part]]:
    """Lists of parts that hold about so many tiles together."""
    held: list[_Part] = []
    for grid, hidden in zip(grids, hiddens, strict=True):
        for part in _parts(grid, hidden, tiles):
            if held and sum(other.tiles for other in held) + part.tiles > tiles:
                yield held
                held = []
            held.append(part)
    if held:
        yield held


def _parts(grid: Tensor, hidden: Tensor, tiles: int) -> Iterator[_Part]:
    """Whole images, or some rows of one, of at most about so many tiles."""
    batch, height, width = hidden.shape[:3]
    across, down = -(-width // TILE), -(-height // TILE)
    images = max(1, tiles // (across * down))
    rows = TILE * max(1, min(down, tiles // across))
    for first in range(0, batch, images):
        some = slice(first, first + images)
        for top in range(0, height, rows):
            yield _Part(grid[some], hidden[some], slice(top, min(top + rows, height)))


def _slab(hidden: Tensor, rows: slice) -> Tensor:
    """Whole tiles around the rows: real neighbours where there are any, zeros elsewhere."""
    batch, height, width, channels = hidden.shape
    down, across = -(-(rows.stop - rows.start) // TILE), -(-width // TILE)
    slab = hidden.new_zeros(batch, TILE * down + 2, TILE * across + 2, channels)
    first, last = max(rows.start - 1, 0), min(rows.start + TILE * down + 1, height)
    offset = first - (rows.start - 1)
    slab[:, offset : offset + last - first, 1 : width + 1] = hidden[:, first:last]
    return slab


def _points(slabs: Sequence[Tensor]) -> list[Tensor]:
    """Slabs (g, 4k + 2, 4t + 2, c) to 36 matrices (tiles of all slabs, c), one per point."""
    by_slab = [_points_of(slab) for slab in slabs]
    if len(by_slab) == 1:
        return by_slab[0]
    return [torch.cat(point) for point in zip(*by_slab, strict=True)]


def _points_of(slab: Tensor) -> list[Tensor]:
    last = slab.shape[1] - POINTS + 1  # where the last tile begins, and its like below
    bands = _to_points([slab[:, i : last + i : TILE] for i in range(POINTS)])
    last = slab.shape[2] - POINTS + 1
    columns = [[band[:, :, j : last + j : TILE] for j in range(POINTS)] for band in bands]
    return [point.flatten(0, 2) for band in columns for point in _to_points(band)]


def _assembled(mixed: Sequence[Tensor], shape: tuple[int, int, int]) -> Tensor:
    """36 products (g k t, C) to outputs (g, 4k, 4t, C)."""
    images, down, across = shape
    outputs = mixed[0].new_empty(images, down, TILE, across, TILE, mixed[0].shape[1])
    columns = [_from_points(mixed[j::POINTS]) for j in range(POINTS)]
    for i in range(TILE):
        for j, output in enumerate(_from_points([column[i] for column in columns])):
            outputs[:, :, i, :, j] = output.view(images, down, across, -1)
    return outputs.flatten(3, 4).flatten(1, 2)

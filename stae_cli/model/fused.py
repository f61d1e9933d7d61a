"""The inference form's layers for CUDA devices: matrix products with Triton kernels in between.

What a block adds to its rows waits for the kernel that normalises them for the next one, so that
both are done while the rows are at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, linear

from stae_cli.model import kernels
from stae_cli.model.affine import Affine
from stae_cli.model.layers import FieldHead, Project
from stae_cli.model.trial import has_gelu_epilogue
from stae_cli.model.trunk import by_size, chunks, empty_rows


class Stream:
    """Rows (N, width) that blocks add to, in place; the last addition waits to be made.

    Args:
        rows: they are overwritten.
        product: the first addition (N, width), if there is one already.
        bias: its bias (width,).
    """

    def __init__(
        self, rows: Tensor, product: Tensor | None = None, bias: Tensor | None = None
    ) -> None:
        self._rows = rows
        self._waiting = None if product is None or bias is None else (product, bias)

    def add(self, layer: Affine, hidden: Tensor) -> None:
        """Adds the layer's output for `hidden` (N, inputs)."""
        self.settled()
        self._waiting = hidden @ layer.weight.T, layer.bias

    def level(self) -> Tensor:
        """The rows, normalised."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return kernels.normed(self._rows)
        return kernels.add_normed(self._rows, *waiting)

    def settled(self) -> Tensor:
        """The rows with everything added."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            kernels.add(self._rows, *waiting)
        return self._rows


@dataclass(frozen=True)
class GegluStep:
    """A GEGLU block; `raised` makes the gate and what it gates at once."""

    raised: Affine
    down: Affine

    def __call__(self, stream: Stream) -> None:
        stream.add(self.down, kernels.geglu(self.raised(stream.level())))


@dataclass(frozen=True)
class PointStep:
    """A spatial block whose last convolution is 1x1."""

    inner: Affine
    outer: Affine

    def __call__(self, stream: Stream) -> None:
        stream.add(self.outer, tanh_gelu(self.inner, stream.level()))


@dataclass(frozen=True)
class Stack:
    """Blocks that never mix rows."""

    steps: Sequence[Callable[[Stream], None]]

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows (N, width), which are overwritten -> (N, width)."""
        stream = Stream(rows)
        for step in self.steps:
            step(stream)
        return stream.settled()


@dataclass(frozen=True)
class FusedPair:
    """A spatial block and the GEGLU block behind it."""

    inner: Affine
    kernel: Tensor  # (C, C, 3, 3), channels last
    bias: Tensor  # (C,)
    geglu: GegluStep

    def mixed(self, hiddens: Sequence[Tensor]) -> Tensor:
        """The convolution of each (B, h, w, C), its bias left out -> (N, C) of all of them."""
        parts = [
            conv2d(hidden.permute(0, 3, 1, 2), self.kernel, padding=1).permute(0, 2, 3, 1)
            for hidden in hiddens
        ]
        rows = [part.reshape(-1, part.shape[-1]) for part in parts]
        return rows[0] if len(rows) == 1 else torch.cat(rows)


class FusedTrunk:
    """A trunk with 3x3 convolutions."""

    alignment = 1

    def __init__(self, project: Project, pairs: Sequence[FusedPair], rows: int) -> None:
        self._project, self._pairs, self._rows = project, pairs, rows

    def __call__(self, latents: Sequence[Tensor]) -> Tensor:
        """Latents (h, w, C) of any sizes -> (N, width) for all their positions in order."""
        rows = torch.cat([latent.flatten(0, 1) for latent in latents])
        grid, hidden = (empty_rows(rows, self._project.outer) for _ in range(2))
        hiddens = by_size(hidden, latents)
        first, *others = self._pairs
        for part in chunks(rows, self._rows):
            grid[part] = self._project(rows[part])
            hidden[part] = tanh_gelu(first.inner, kernels.normed(grid[part]))
        for pair, following in zip(self._pairs, [*others, None], strict=True):
            mixed = pair.mixed(hiddens)
            for part in chunks(rows, self._rows):
                stream = Stream(grid[part], mixed[part], pair.bias)
                pair.geglu(stream)
                if following is None:
                    stream.settled()
                else:
                    hidden[part] = tanh_gelu(following.inner, stream.level())
        return grid


@dataclass(frozen=True)
class FusedFieldHead(FieldHead):
    """The neural field, painted by one kernel behind its generator."""

    def pixels(self, rows: Tensor) -> Tensor:
        """Rows (N, width) -> (N, P, 3), unclamped."""
        return self._run(rows, levels=False)[0]

    def levels(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (N, width) -> uint8 (N, P, 3), and (N,) whether all was finite before rounding."""
        return self._run(rows, levels=True)

    def _run(self, rows: Tensor, *, levels: bool) -> tuple[Tensor, Tensor]:
        return kernels.painted(self.generator(rows), self.encoded, self.constant, levels=levels)


def tanh_gelu(layer: Affine, rows: Tensor) -> Tensor:
    """tanh-GELU of the layer's output, in the product's own epilogue where torch has that."""
    if has_gelu_epilogue(rows.device, rows.dtype):
        return torch._addmm_activation(layer.bias, rows, layer.weight.T, use_gelu=True)
    return gelu(linear(rows, layer.weight, layer.bias), approximate="tanh")

"""Samples: the stored latents of some sources, one after another, as an export writes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt

from stae_cli.latents.format import Latent
from stae_cli.latents.index import NO_FLIP, LatentIndex, Location
from stae_cli.latents.mapped import LatentMaps
from stae_cli.latents.moments import Moments, moments_of
from stae_cli.storage.notes import NO_LABEL

TOGETHER = 1 << 16  # positions whose moments are computed at once


@dataclass(frozen=True)
class Scaling:
    """z' = (z - mean) / std, channel by channel; both (C, 1, 1) float32."""

    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]

    def apply(self, latent: Latent) -> Latent:
        """Normalised, in float32."""
        normal: Latent = (latent.astype(np.float32) - self.mean) / self.std
        return normal


@dataclass(frozen=True)
class Sample:
    """One picture: its latent (C, h, w), that of the mirrored picture if there is one, and notes.

    `label` is -1 and `caption` empty if there is none; sizes are in pixels.
    """

    key: str
    latent: Latent
    flip: Latent | None
    caption: str
    label: int
    width: int
    height: int
    original_width: int
    original_height: int


class Samples:
    """All latents of an index, in its order.

    Args:
        index: of the sources.
        scaling: applied to each.
    """

    def __init__(self, index: LatentIndex, scaling: Scaling | None = None) -> None:
        self.index, self.scaling = index, scaling
        self._maps = LatentMaps(index, check=True)

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Sample]:
        """Reads them one by one; raises StaeError at one that is damaged."""
        return map(self.sample, range(len(self)))

    def sample(self, number: int) -> Sample:
        """One of them; raises StaeError if it is damaged."""
        where = self.index.location(number)
        return Sample(
            self.index.key(number),
            self._latent(number, where),
            self._latent(number, where, flipped=True) if where.has_flip else None,
            self.index.caption(number),
            where.label,
            where.width,
            where.height,
            where.original_width,
            where.original_height,
        )

    def latent(self, number: int, *, flipped: bool = False) -> Latent:
        """One latent (C, h, w), contiguous, or that of the mirrored picture."""
        return self._latent(number, self.index.location(number), flipped=flipped)

    def _latent(self, number: int, where: Location, *, flipped: bool = False) -> Latent:
        found = self._maps.latent(number, where, flipped=flipped)
        return found if self.scaling is None else self.scaling.apply(found)

    def keys(self) -> Iterator[str]:
        """Their keys."""
        return map(self.index.key, range(len(self)))

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Their labels."""
        return self.index.column("label")

    @property
    def shapes(self) -> dict[tuple[int, int, int], str]:
        """Each shape there is, and the key of the first latent that has it."""
        columns = [self.index.column(name) for name in ("channels", "rows", "columns")]
        shapes, numbers = np.unique(np.stack(columns, axis=1), axis=0, return_index=True)
        found = sorted(zip(numbers.tolist(), shapes.tolist(), strict=True))
        return {(c, h, w): self.index.key(number) for number, (c, h, w) in found}

    @property
    def dtype(self) -> str:
        """Of all of them, as `float16`; of two the wider one."""
        return f"float{8 * self.index.column('itemsize').max()}"

    def first(self, *, label: bool = False, flip: bool = False) -> str | None:
        """The key of the first sample that lacks a label, or a flip; None if none does."""
        lacking = np.zeros(len(self), bool)
        if label:
            lacking |= self.labels == NO_LABEL
        if flip:
            lacking |= self.index.column("flip_crc32") == NO_FLIP
        return self.index.key(int(lacking.argmax())) if lacking.any() else None

    @property
    def has_captions(self) -> bool:
        """Whether any of them has a caption."""
        return any(self.index.caption(number) for number in range(len(self)))

    def moments(self) -> Moments:
        """The moments of all; reads each once, without its flip."""
        return reduce(Moments.__add__, map(moments_of, self._slabs()))

    def _slabs(self) -> Iterator[Latent]:
        """The positions of several latents together, as (C, 1, n)."""
        held: list[Latent] = []
        positions = 0
        for number in range(len(self)):
            latent = self.latent(number)
            held.append(latent.reshape(latent.shape[0], -1))
            positions += held[-1].shape[1]
            if positions >= TOGETHER:
                yield _joined(held)
                held, positions = [], 0
        if held:
            yield _joined(held)


def _joined(parts: Sequence[Latent]) -> Latent:
    joined: Latent = np.concatenate(parts, axis=1)[:, None]
    return joined

"""Moments of latents, in constant memory, and the figures that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt

from stae_cli.latents.format import Latent

SLAB = 1 << 16  # positions that are float64 at once

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Sums over latent positions, which can be added without losing precision.

    `mean` and `largest` absolute value are (C,); `comoment` is (C, C), the sum over positions of
    the products of the channels' deviations from their means.
    """

    count: int
    mean: Values
    comoment: Values
    largest: Values

    def __add__(self, other: Moments) -> Moments:
        """The moments of both together (Chan, Golub, LeVeque 1979)."""
        count = self.count + other.count
        apart = other.mean - self.mean
        shared = np.outer(apart, apart) * (self.count * other.count / count)
        return Moments(
            count,
            self.mean + apart * (other.count / count),
            self.comoment + other.comoment + shared,
            np.maximum(self.largest, other.largest),
        )


@dataclass(frozen=True)
class Statistics:
    """Per channel mean and standard deviation, one shift and scale for all, and the extreme.

    z' = (z - shift) * scale has mean 0 and variance 1 over all channels together, as in
    `Codec.normalize`. Standard deviations divide by N - 1. `correlation` is None where a channel is
    constant, and `scale` if all are.
    """

    positions: int
    mean: list[float]
    std: list[float]
    shift: float
    scale: float | None
    largest: float
    largest_per_channel: list[float]
    correlation: list[list[float | None]]


def moments_of(latent: Latent) -> Moments:
    """The moments of one latent (C, h, w) of finite values."""
    flat = latent.reshape(latent.shape[0], -1)
    slabs = (flat[:, begin : begin + SLAB] for begin in range(0, flat.shape[1], SLAB))
    return reduce(Moments.__add__, map(_moments_of_slab, slabs))


def _moments_of_slab(slab: Latent) -> Moments:
    values = slab.astype(np.float64)  # (C, n)
    mean = values.mean(axis=1)
    largest = np.abs(values).max(axis=1)
    values -= mean[:, None]
    return Moments(values.shape[1], mean, values @ values.T, largest)


def statistics_of(moments: Moments) -> Statistics:
    """The figures of at least two positions."""
    channels, total = len(moments.mean), moments.count * len(moments.mean)
    squares = moments.comoment.diagonal()
    shift = float(moments.mean.mean())
    spread = float(squares.sum() + moments.count * np.square(moments.mean - shift).sum())
    roots = np.sqrt(squares)
    return Statistics(
        positions=moments.count,
        mean=moments.mean.tolist(),
        std=np.sqrt(squares / (moments.count - 1)).tolist(),
        shift=shift,
        scale=math.sqrt((total - 1) / spread) if spread else None,
        largest=float(moments.largest.max()),
        largest_per_channel=moments.largest.tolist(),
        correlation=[
            [_ratio(moments.comoment[i, j], roots[i] * roots[j]) for j in range(channels)]
            for i in range(channels)
        ],
    )


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None

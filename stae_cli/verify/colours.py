"""Latents as colours: the first three principal components of their channels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stae_cli.images.buffers import Pixels
from stae_cli.latents.format import Latent
from stae_cli.latents.moments import SLAB, Statistics

COMPONENTS = 3  # red, green and blue
REACH = 2.5  # deviations of a component between mid-grey and its strongest or weakest colour
SMALLEST = 1e-12  # share of the largest variance: below it, a component is rounding
DIGITS = 6  # in which weights are compared

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Components:
    """The principal components of latents, in the order of their variances.

    `axes` @ (z - `mean`) has a deviation of 1 in each component. `mean` is (C,), `axes` (3, C); the
    axis of a component that does not exist, or does not vary, is 0.
    """

    mean: Values
    axes: Values


def components_of(statistics: Statistics) -> Components:
    """The components, from the covariances of the channels.

    Their signs are free: here the largest weight of each is positive, and that of the first channel
    if several are as large.
    """
    std = np.asarray(statistics.std)
    correlation = [[value or 0.0 for value in row] for row in statistics.correlation]
    variances, vectors = np.linalg.eigh(np.asarray(correlation) * np.outer(std, std))
    axes = np.zeros((COMPONENTS, len(std)))
    for row in range(min(COMPONENTS, len(std))):
        variance, axis = variances[-1 - row], vectors[:, -1 - row]  # eigh's are in ascending order
        if variance > SMALLEST * variances[-1]:
            sign = np.sign(axis[np.argmax(np.abs(axis).round(DIGITS))])
            axes[row] = axis * sign / np.sqrt(variance)
    return Components(np.asarray(statistics.mean), axes)


def coloured(latent: Latent, components: Components) -> Pixels:
    """A latent (C, h, w) as (h, w, 3) uint8: a pixel for each position, mid-grey at the mean."""
    channels, rows, columns = latent.shape
    flat = latent.reshape(channels, -1)
    colours = np.empty((flat.shape[1], COMPONENTS), np.uint8)
    for begin in range(0, len(colours), SLAB):
        apart = flat[:, begin : begin + SLAB].astype(np.float64) - components.mean[:, None]
        shares = (components.axes @ apart).clip(-REACH, REACH) / REACH
        colours[begin : begin + SLAB] = np.rint(127.5 + 127.5 * shares).T
    return colours.reshape(rows, columns, COMPONENTS)

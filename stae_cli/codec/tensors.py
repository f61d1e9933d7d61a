"""What callers give a codec and get back: layouts, checks, and packed latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stae_cli.errors import InputError

COLOURS = 3

PerChannel = float | Sequence[float] | npt.NDArray[np.floating] | Tensor


def check_tensors(given: object, verb: str) -> None:
    """Checks that there is at least one tensor, in a batch or a list.

    Raises:
        InputError: there is none.
    """
    if not isinstance(given, Tensor | Sequence) or isinstance(given, str):
        raise InputError(
            f"cannot {verb} a {type(given).__name__}", "give a tensor, or a list of tensors"
        )
    if not len(given):
        raise InputError(f"nothing to {verb}", "give at least one tensor")


def channel_numbers(values: PerChannel, name: str, latents: Tensor) -> Tensor | float:
    """One number as it is; one for each channel laid out so that it multiplies latents.

    The numbers stay on the device: nothing waits for it.

    Args:
        values: a number, or C of them; other axes of size 1 are left out.
        name: of the values, for messages.
        latents: (..., C, h, w), or tokens (N, C).

    Raises:
        InputError: another count than that of the channels.
    """
    if isinstance(values, int | float):
        return values
    numbers = torch.as_tensor(values, dtype=latents.dtype, device=latents.device).flatten()
    axis = -3 if latents.ndim > 2 else -1
    if len(numbers) not in (1, latents.shape[axis]):
        raise InputError(
            f"`{name}` has {len(numbers)} numbers for latents of shape {tuple(latents.shape)}",
            f"give one number, or {latents.shape[axis]}",
        )
    return numbers.view(-1, 1, 1) if axis == -3 else numbers


def rows_of(images: Tensor, size: int, *, dimensions: tuple[int, ...] = (3, 4)) -> Tensor:
    """An image as (H, W, 3) or a batch as (B, H, W, 3), where it lies.

    Args:
        images: the same, or (3, H, W) or (B, 3, H, W); uint8, or float in [-1, 1].
        size: pixels on a side of a latent position.
        dimensions: how many there may be.

    Raises:
        InputError: a side is not a multiple of the size, or the tensor is none of these.
    """
    if not isinstance(images, Tensor):
        raise InputError(f"cannot encode a {type(images).__name__}", "give tensors")
    known = images.dtype == torch.uint8 or images.is_floating_point()
    if not known or images.ndim not in dimensions or (axis := _colours(images)) is None:
        raise InputError(
            f"cannot encode a {images.dtype} tensor of shape {tuple(images.shape)}",
            "give (B, 3, H, W) or (B, H, W, 3), float in [-1, 1] or uint8; or a list without B",
        )
    rows = images.movedim(axis, -1)
    height, width = rows.shape[-3:-1]
    if height % size or width % size or not height or not width:
        raise InputError(
            f"an image of {width}x{height} has a side that is not a multiple of {size}",
            "pad or crop it first; `stae encode` pads and records the true size",
        )
    return rows


def _colours(images: Tensor) -> int | None:
    """Where the colours are: sides of 3 are never a multiple of a patch, so there is no doubt."""
    usual = (-1, -3) if images.dtype == torch.uint8 else (-3, -1)
    return next((axis for axis in usual if images.shape[axis] == COLOURS), None)


def count_of(rows: Tensor) -> int:
    """How many images what `rows_of` gives is."""
    return rows.shape[0] if rows.ndim == 4 else 1


def check_channels(latents: Tensor, channels: int, *, dimensions: int) -> None:
    """Checks latents (C, h, w), or (B, C, h, w).

    Raises:
        InputError: they have other channels or dimensions, hold nothing, or are no floats.
    """
    if not isinstance(latents, Tensor):
        raise InputError(f"cannot decode a {type(latents).__name__}", "give tensors")
    if not latents.is_floating_point():
        raise InputError(f"cannot decode a {latents.dtype} tensor", "give floats")
    if latents.ndim != dimensions or latents.shape[-3] != channels or not latents.numel():
        raise InputError(
            f"cannot decode a tensor of shape {tuple(latents.shape)}",
            f"latents of this network are (B, {channels}, h, w), or a list of them without B",
        )


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


@dataclass(frozen=True)
class PackedLatents:
    """Latents of several pictures, one after another.

    Attributes:
        tokens: (N, C), one row per latent position: picture by picture, each row-major.
        sizes: (h, w) of each picture's grid. Plain numbers, whatever device the tokens are on:
            reading them does not wait for the device.

    Raises:
        InputError: the sizes do not add up to the number of tokens.
    """

    tokens: Tensor
    sizes: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or sum(self.counts) != len(self.tokens):
            raise InputError(
                f"tokens of shape {tuple(self.tokens.shape)} do not fit grids of {self.sizes}",
                "give (N, C) tokens and the (h, w) of each picture; h * w over all of them is N",
            )

    @classmethod
    def pack(cls, latents: Sequence[Tensor]) -> PackedLatents:
        """Packs latents (C, h, w) of any sizes, of one dtype and on one device.

        Raises:
            InputError: none given, or one has another number of dimensions or channels.
        """
        shapes = [tuple(latent.shape) for latent in latents]
        if not shapes or any(len(s) != 3 or s[0] != shapes[0][0] for s in shapes):
            raise InputError(
                f"cannot pack latents of shapes {shapes}", "give at least one, all (C, h, w)"
            )
        tokens = torch.cat([latent.flatten(1).T for latent in latents])
        return cls(tokens, tuple((height, width) for _, height, width in shapes))

    @property
    def counts(self) -> list[int]:
        """How many tokens each picture has."""
        return [height * width for height, width in self.sizes]

    def unpack(self) -> list[Tensor]:
        """The latents (C, h, w) of each picture in order: views, not copies."""
        parts = self.tokens.split(self.counts)
        return [part.T.unflatten(1, size) for part, size in zip(parts, self.sizes, strict=True)]

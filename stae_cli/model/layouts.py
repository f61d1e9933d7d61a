"""What callers give a codec: checked, and seen in the layout that it is computed in."""

from __future__ import annotations

from torch import Tensor, uint8

from stae_cli.errors import InputError


def rows_of(images: Tensor, size: int, *, dimensions: tuple[int, ...] = (3, 4)) -> Tensor:
    """An image as (H, W, 3) or a batch as (B, H, W, 3), uint8 or float, where it lies.

    Args:
        images: the same if uint8, else (3, H, W) or (B, 3, H, W) in [-1, 1].
        size: pixels on a side of a latent position.
        dimensions: how many there may be.

    Raises:
        InputError: a side is no multiple of the size, or it is none of these.
    """
    there = images.ndim in dimensions
    if there and images.dtype == uint8 and images.shape[-1] == 3:
        rows = images
    elif there and images.is_floating_point() and images.shape[-3] == 3:
        rows = images.movedim(-3, -1)
    else:
        raise InputError(
            f"cannot encode a {images.dtype} tensor of shape {tuple(images.shape)}",
            "give (B, 3, H, W) float in [-1, 1] or (B, H, W, 3) uint8",
        )
    height, width = rows.shape[-3:-1]
    if height % size or width % size or not height or not width:
        raise InputError(
            f"an image of {width}x{height} has a side that is no multiple of {size}",
            "pad or crop it first; `stae encode` pads and records the true size",
        )
    return rows


def count_of(rows: Tensor) -> int:
    """How many images what `rows_of` gives is."""
    return rows.shape[0] if rows.ndim == 4 else 1


def check_channels(latents: Tensor, channels: int, *, dimensions: int) -> None:
    """Checks latents (C, h, w), or (B, C, h, w).

    Raises:
        InputError: they have other channels or dimensions, or hold nothing.
    """
    if latents.ndim != dimensions or latents.shape[-3] != channels or not latents.numel():
        raise InputError(
            f"cannot decode a tensor of shape {tuple(latents.shape)}",
            f"latents of this network are (B, {channels}, h, w), or a list of them without B",
        )

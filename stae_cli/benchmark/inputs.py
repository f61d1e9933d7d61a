"""What the networks are given: tensors on the device, enough of them that no cache flatters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stae_cli.benchmark.report import Case
from stae_cli.network.stupid_ae import SEED

CACHE_BYTES = 128 << 20  # more than the last cache of most devices
FEWEST, MOST = 2, 32


class Inputs:
    """The buffers of one case, drawn from a seed and shared by the networks that take the same.

    Args:
        case: how many pictures of which size.
        device: where the buffers lie.
        dtype: of images and latents.
    """

    def __init__(self, case: Case, *, device: torch.device, dtype: torch.dtype) -> None:
        self._case, self._device, self._dtype = case, device, dtype
        self._kept: dict[tuple[tuple[int, int, int], torch.dtype], list[Tensor]] = {}

    def pixels(self) -> list[Tensor]:
        """(B, H, W, 3) uint8 each."""
        return self._buffers((self._case.height, self._case.width, 3), torch.uint8)

    def images(self) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] each."""
        return self._buffers((3, self._case.height, self._case.width), self._dtype)

    def latents(self, channels: int, factor: int) -> list[Tensor]:
        """(B, channels, H/factor, W/factor) each."""
        shape = (channels, self._case.height // factor, self._case.width // factor)
        return self._buffers(shape, self._dtype)

    def _buffers(self, shape: tuple[int, int, int], dtype: torch.dtype) -> list[Tensor]:
        if (shape, dtype) not in self._kept:
            whole = (self._case.batch, *shape)
            many = min(max(CACHE_BYTES // (math.prod(whole) * dtype.itemsize) + 1, FEWEST), MOST)
            generator = torch.Generator(self._device).manual_seed(SEED)
            drawn = [self._drawn(whole, dtype, generator) for _ in range(many)]
            self._kept[shape, dtype] = drawn
        return self._kept[shape, dtype]

    def _drawn(
        self, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
    ) -> Tensor:
        if dtype == torch.uint8:
            return torch.randint(256, shape, dtype=dtype, device=self._device, generator=generator)
        return torch.empty(shape, dtype=dtype, device=self._device).uniform_(
            -1, 1, generator=generator
        )

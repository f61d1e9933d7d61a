"""Packed latents: pictures of any sizes as one matrix of tokens, without bucketing or padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stae_cli.errors import InputError


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

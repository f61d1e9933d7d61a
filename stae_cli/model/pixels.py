"""The codec's numpy border: 8-bit pictures to latents and back, what overflows redone wider."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stae_cli.model.codec import Codec

Pixels = npt.NDArray[np.uint8]  # (H, W, 3) RGB
Latent = npt.NDArray[np.floating]  # (C, h, w)
Result = TypeVar("Result")


class PixelCodec(Codec):
    """A codec that also takes and gives numpy arrays, as files hold them."""

    def encode_pixels(self, pictures: Sequence[Pixels]) -> list[Latent | None]:
        """(H, W, 3) uint8 arrays of any sizes to (16, h, w) arrays.

        They come in the codec's dtype, or in float32 where it is bfloat16, which numpy lacks, or
        where it overflowed. None stands for a picture whose latent is not finite in float32 either.
        """
        latents = [_to_numpy(latent) for latent in self.encode([_to_tensor(p) for p in pictures])]
        broken = [i for i, latent in enumerate(latents) if not np.isfinite(latent).all()]
        results: list[Latent | None] = [*latents]
        again = self._again(broken, lambda wide: wide.encode_pixels([pictures[i] for i in broken]))
        for index, latent in zip(broken, again, strict=True):
            results[index] = latent
        return results

    def decode_pixels(self, latents: Sequence[Latent]) -> list[Pixels | None]:
        """(16, h, w) arrays of any sizes to (8h, 8w, 3) uint8 arrays, rounded to nearest.

        What is not finite is redone in float32; None stands for a picture that is not even then.
        """
        tensors = [torch.from_numpy(latent) for latent in latents]
        with torch.no_grad():
            levels, finite = self._within_memory(lambda: self._decoded_levels(tensors))
        results: list[Pixels | None] = [image.numpy() for image in levels]
        broken = [index for index, good in enumerate(finite) if not good]
        again = self._again(broken, lambda wide: wide.decode_pixels([latents[i] for i in broken]))
        for index, picture in zip(broken, again, strict=True):
            results[index] = picture
        return results

    @cached_property
    def _in_float32(self) -> PixelCodec:
        """The same weights on the same device, for what overflows half precision."""
        return PixelCodec(
            self._model,
            device=self.device,
            dtype=torch.float32,
            batch_patches=self.batch_patches,
            triton=False,  # nothing but the most plain way to compute them
        )

    def _again(
        self, broken: Sequence[int], run: Callable[[PixelCodec], list[Result | None]]
    ) -> list[Result | None]:
        """What was not finite, once more in float32; None where that cannot help."""
        if not broken or self.dtype == torch.float32:
            return [None] * len(broken)
        return run(self._in_float32)

    def _decoded_levels(self, latents: Sequence[Tensor]) -> tuple[list[Tensor], list[bool]]:
        """(C, h, w) -> uint8 (8h, 8w, 3), and which of them were finite, all on the CPU."""
        images = [self._canvas(latent, dtype=torch.uint8, device="cpu") for latent in latents]
        finite = [True] * len(latents)
        for pieces, seen in self._pieces(latents):
            levels, good = self._form.decode_levels(seen)
            for piece, pixels, is_good in zip(pieces, levels, good, strict=True):
                finite[piece.index] &= is_good
                self._place(images[piece.index], piece, pixels)
        return images, finite


def _to_numpy(latent: Tensor) -> Latent:
    plain = latent.float() if latent.dtype == torch.bfloat16 else latent
    return cast(Latent, plain.cpu().numpy())


def _to_tensor(picture: Pixels) -> Tensor:
    return torch.from_numpy(np.require(picture, requirements=["C", "W"]))  # torch wants both

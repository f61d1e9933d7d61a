"""The codec's numpy border: 8-bit pictures to latents and back, what overflows redone wider."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stae_cli.model.architecture import UNIT
from stae_cli.model.codec import Codec

Pixels = npt.NDArray[np.uint8]  # (H, W, 3) RGB
Memory = npt.NDArray[np.uint8]  # (bytes,)
Latent = npt.NDArray[np.floating]  # (C, h, w)
Result = TypeVar("Result")

PATCH_BYTES = 3 * UNIT**2
LARGEST_LOCKED = 64 << 20  # of one picture, in bytes: what is locked is rounded up to a power of 2


class PixelCodec(Codec):
    """A codec that also takes and gives numpy arrays, as files hold them."""

    def encode_pixels(self, pictures: Sequence[Pixels]) -> list[Latent | None]:
        """(H, W, 3) uint8 arrays of any sizes to (16, h, w) arrays.

        They come in the codec's dtype, or in float32 where it is bfloat16, which numpy lacks, or
        where it overflowed. None stands for a picture whose latent is not finite in float32 either.
        """
        with torch.no_grad():
            latents, finite = self._within_memory(lambda: self._encoded_pixels(pictures))
        broken = [index for index, good in enumerate(finite) if not good]
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

    @property
    def host_memory(self) -> Callable[[int], Memory] | None:
        """Gives so many bytes that are copied from fast; None where plain memory is no slower."""
        if self.device.type != "cuda":
            return None
        return lambda size: cast(Memory, self._room((size,), torch.uint8).numpy())

    def _encoded_pixels(self, pictures: Sequence[Pixels]) -> tuple[list[Latent], list[bool]]:
        """(H, W, 3) -> (C, h, w), and which of them are finite, all on the host."""
        packed = self.encode_packed([self._sent(_to_tensor(picture)) for picture in pictures])
        tokens, counts = packed.tokens, packed.counts
        good = tokens.isfinite().all(1)
        turned = tokens.new_empty(tokens.numel())
        parts = turned.split([tokens.shape[1] * count for count in counts])
        for part, latent in zip(parts, packed.unpack(), strict=True):
            part.view(latent.shape).copy_(latent)
        turned, good = self._fetched(turned), self._fetched(good)
        self._wait()
        parts = turned.split([tokens.shape[1] * count for count in counts])
        latents = [
            _to_numpy(part.view(tokens.shape[1], *size))
            for part, size in zip(parts, packed.sizes, strict=True)
        ]
        return latents, [bool(each.all()) for each in good.split(counts)]

    def _decoded_levels(self, latents: Sequence[Tensor]) -> tuple[list[Tensor], list[bool]]:
        """(C, h, w) -> uint8 (8h, 8w, 3), and which of them were finite, all on the host."""
        images = [self._picture_of(latent) for latent in latents]
        finite = [True] * len(latents)
        for pieces, seen in self._pieces(latents):
            levels, good = self._form.decode_levels(seen)
            for piece, pixels, is_good in zip(pieces, levels, good, strict=True):
                finite[piece.index] &= is_good
                image = images[piece.index]
                if image.shape == pixels.shape:
                    image.copy_(pixels, non_blocking=True)
                else:
                    inner, target = self._inner(image, piece, pixels)
                    target.copy_(inner)
        self._wait()
        return images, finite

    # Copies to and from page-locked memory go on while the host does other things: whoever starts
    # one on its own way back calls `_wait` before anybody looks at it, or changes its source.

    def _sent(self, picture: Tensor) -> Tensor:
        """A picture on the device; a large one stays, and is sent in bands."""
        if self.device.type != "cuda" or picture.nbytes > self.batch_patches * PATCH_BYTES:
            return picture
        return picture.to(self.device, non_blocking=True)

    def _fetched(self, result: Tensor) -> Tensor:
        """A copy on the host, to be looked at after `_wait`."""
        if self.device.type != "cuda":
            return result.cpu()
        return self._room(result.shape, result.dtype).copy_(result, non_blocking=True)

    def _picture_of(self, latent: Tensor) -> Tensor:
        """Room on the host for the picture of a latent (C, h, w)."""
        size, (height, width) = self.architecture.downsample, latent.shape[1:]
        return self._room((height * size, width * size, 3), torch.uint8)

    def _room(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Uninitialised memory of the host, page-locked where that pays and can be had."""
        size = math.prod(shape) * dtype.itemsize
        if self.device.type == "cuda" and size <= LARGEST_LOCKED:
            with suppress(RuntimeError):  # a limit on locked memory
                return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)
        return torch.empty(tuple(shape), dtype=dtype)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()


def _to_numpy(latent: Tensor) -> Latent:
    plain = latent.float() if latent.dtype == torch.bfloat16 else latent
    return cast(Latent, plain.cpu().numpy())


def _to_tensor(picture: Pixels) -> Tensor:
    return torch.from_numpy(np.require(picture, requirements=["C", "W"]))  # torch wants both

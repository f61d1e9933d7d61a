"""The codec for numpy arrays: 8-bit pictures to latents and back, in float32 what overflows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property, partial
from itertools import groupby
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stae_cli.codec.codec import Codec
from stae_cli.codec.tiling import Piece
from stae_cli.network.architecture import UNIT

Pixels = npt.NDArray[np.uint8]  # (H, W, 3) RGB
Memory = npt.NDArray[np.uint8]  # (bytes,)
Latent = npt.NDArray[np.floating]  # (C, h, w)
Result = TypeVar("Result")
Given = TypeVar("Given")

PATCH_BYTES = 3 * UNIT**2
LARGEST_PINNED = 64 << 20  # bytes of one picture; torch rounds pinned buffers up to a power of 2


class PixelCodec(Codec):
    """A codec that also takes and gives numpy arrays, as files hold them."""

    @property
    def runs_beside(self) -> bool:
        """Whether the device computes while the host does something else."""
        return self.device.type == "cuda"

    def encode_pixels(self, pictures: Sequence[Pixels]) -> list[Latent | None]:
        """(H, W, 3) uint8 arrays of any sizes to (16, h, w) arrays in order.

        They have the codec's dtype, or float32 where that is bfloat16, which numpy does not have,
        or where it overflowed. None stands for a picture whose latent is not finite in float32.
        """
        return self._start_encoding(pictures)()

    def decode_pixels(self, latents: Sequence[Latent]) -> list[Pixels | None]:
        """(16, h, w) arrays of any sizes to (8h, 8w, 3) uint8 arrays, rounded to nearest.

        What is not finite is computed again in float32; None stands for a picture that is not
        finite then either.
        """
        return self._start_decoding(latents)()

    def begin_encoding(self, pictures: Sequence[Pixels]) -> Callable[[], list[Latent | None]]:
        """Starts `encode_pixels`; calling the result waits for the latents and returns them.

        The pictures must not change before that.
        """
        if not self.runs_beside:
            return partial(self.encode_pixels, pictures)
        return self._start_encoding(pictures)

    def begin_decoding(self, latents: Sequence[Latent]) -> Callable[[], list[Pixels | None]]:
        """Starts `decode_pixels` in the same way."""
        if not self.runs_beside:
            return partial(self.decode_pixels, latents)
        return self._start_decoding(latents)

    @torch.no_grad()
    def _start_encoding(self, pictures: Sequence[Pixels]) -> Callable[[], list[Latent | None]]:
        turned, good, sizes = self.tiler.within_memory(lambda: self._encoded_pixels(pictures))
        wait = self._mark()

        def finish() -> list[Latent | None]:
            wait()
            counts = [height * width for height, width in sizes]
            parts = turned.split(counts)
            latents = [
                _to_numpy(part.view(-1, *size)) for part, size in zip(parts, sizes, strict=True)
            ]
            finite = [bool(each.all()) for each in good.split(counts)]
            return self._completed(latents, finite, pictures, PixelCodec.encode_pixels)

        return finish

    @torch.no_grad()
    def _start_decoding(self, latents: Sequence[Latent]) -> Callable[[], list[Pixels | None]]:
        levels, found = self.tiler.within_memory(lambda: self._decoded_levels(latents))
        wait, units = self._mark(), self.tiler.form.positions_each

        def finish() -> list[Pixels | None]:
            wait()
            finite = [True] * len(latents)
            for pieces, good in found:
                parts = good.split([math.prod(piece.seen) * units for piece in pieces])
                for piece, part in zip(pieces, parts, strict=True):
                    finite[piece.index] &= bool(part.all())
            images = [image.numpy() for image in levels]
            return self._completed(images, finite, latents, PixelCodec.decode_pixels)

        return finish

    def _completed(
        self,
        results: Sequence[Result],
        finite: Sequence[bool],
        given: Sequence[Given],
        run: Callable[[PixelCodec, list[Given]], list[Result | None]],
    ) -> list[Result | None]:
        """The results; those that are not finite are computed again in float32 if that can help."""
        broken = [index for index, good in enumerate(finite) if not good]
        completed: list[Result | None] = [*results]
        again: list[Result | None] = [None] * len(broken)
        if broken and self.dtype != torch.float32:
            again = run(self._in_float32, [given[index] for index in broken])
        for index, result in zip(broken, again, strict=True):
            completed[index] = result
        return completed

    @cached_property
    def _in_float32(self) -> PixelCodec:
        """For what overflows half precision."""
        return self.in_float32()

    @property
    def host_memory(self) -> Callable[[int], Memory] | None:
        """Allocates pinned memory, in bytes; None where it is not copied from any faster."""
        if self.device.type != "cuda":
            return None
        return lambda size: cast(Memory, self._buffer((size,), torch.uint8).numpy())

    def _encoded_pixels(
        self, pictures: Sequence[Pixels]
    ) -> tuple[Tensor, Tensor, tuple[tuple[int, int], ...]]:
        """(H, W, 3) -> latents, (N,) which positions are finite, and sizes, on the host.

        Latents (C, h, w) lie one behind another in (N, C).
        """
        packed = self.encode_packed([self._sent(_to_tensor(picture)) for picture in pictures])
        tokens = packed.tokens
        good = tokens.isfinite().all(1)
        turned, start = torch.empty_like(tokens), 0
        for (height, width), equal in groupby(packed.sizes):
            part = slice(start, start + len(list(equal)) * height * width)
            grids = tokens[part].view(-1, height * width, tokens.shape[1]).mT
            turned[part].view(grids.shape).copy_(grids)
            start = part.stop
        return self._fetched(turned), self._fetched(good), packed.sizes

    def _decoded_levels(
        self, latents: Sequence[Latent]
    ) -> tuple[list[Tensor], list[tuple[list[Piece], Tensor]]]:
        """(C, h, w) -> uint8 (8h, 8w, 3), and of pieces which positions were finite, on the host.

        The positions are the first stage's.
        """
        given, size = [torch.from_numpy(latent) for latent in latents], self.architecture.downsample
        images, found = [self._picture_of(latent) for latent in given], []
        for pieces, levels, good in self.tiler.levels_of(self._sent_together(given)):
            found.append((pieces, self._fetched(good)))
            for piece, pixels in zip(pieces, levels, strict=True):
                inner, target = piece.inner(pixels, size), piece.target(images[piece.index], size)
                target.copy_(inner, non_blocking=inner.is_contiguous() and target.is_contiguous())
        return images, found

    # Copies to and from pinned memory run while the host does something else. After starting one,
    # wait for a `_mark` before reading the copy or changing its source.

    def _sent(self, picture: Tensor) -> Tensor:
        """A picture on the device; a large one stays, and is sent in bands."""
        if not self.runs_beside or picture.nbytes > self.batch_patches * PATCH_BYTES:
            return picture
        return self._pinned(picture).to(self.device, non_blocking=True)

    def _sent_together(self, latents: Sequence[Tensor]) -> Sequence[Tensor]:
        """Latents on the device, small ones by one copy of all."""
        kinds = {latent.dtype for latent in latents}
        size = sum(latent.nbytes for latent in latents)
        if not self.runs_beside or len(kinds) > 1 or size > LARGEST_PINNED:
            return latents
        counts = [latent.numel() for latent in latents]
        buffer = self._buffer((sum(counts),), *kinds)
        torch.cat([latent.reshape(-1) for latent in latents], out=buffer)
        parts = buffer.to(self.device, non_blocking=True).split(counts)
        return [part.view(each.shape) for part, each in zip(parts, latents, strict=True)]

    def _pinned(self, picture: Tensor) -> Tensor:
        """In pinned memory: a copy from any other waits for everything that the device does."""
        if picture.is_pinned():
            return picture
        return self._buffer(picture.shape, picture.dtype).copy_(picture)

    def _fetched(self, result: Tensor) -> Tensor:
        """A copy on the host, to be read after a `_mark`."""
        if self.device.type != "cuda":
            return result.cpu()
        return self._buffer(result.shape, result.dtype).copy_(result, non_blocking=True)

    def _picture_of(self, latent: Tensor) -> Tensor:
        """A buffer on the host for the picture of a latent (C, h, w)."""
        size, (height, width) = self.architecture.downsample, latent.shape[1:]
        return self._buffer((height * size, width * size, 3), torch.uint8)

    def _buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Uninitialised memory of the host, pinned on CUDA if possible."""
        size = math.prod(shape) * dtype.itemsize
        if self.device.type == "cuda" and size <= LARGEST_PINNED:
            with suppress(RuntimeError):  # a limit on pinned memory
                return torch.empty(tuple(shape), dtype=dtype, device="cpu", pin_memory=True)
        return torch.empty(tuple(shape), dtype=dtype, device="cpu")

    def _mark(self) -> Callable[[], None]:
        """Returns what waits, when called, for all work that has been started by now."""
        if self.device.type != "cuda":
            return lambda: None
        with torch.cuda.device(self.device):
            event = torch.cuda.Event(blocking=True)  # leaves its core to threads that read files
            event.record()
        return event.synchronize


def _to_numpy(latent: Tensor) -> Latent:
    plain = latent.float() if latent.dtype == torch.bfloat16 else latent
    return cast(Latent, plain.cpu().numpy())


def _to_tensor(picture: Pixels) -> Tensor:
    return torch.from_numpy(np.require(picture, requirements=["C", "W"]))  # torch wants both

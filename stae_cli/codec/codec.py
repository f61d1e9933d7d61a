"""The codec: images to latents and back on one device, any sizes, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from typing import Self, TypeVar, overload

import torch
from torch import Tensor

from stae_cli.codec import compile_ops as operators
from stae_cli.codec.arithmetic import plain_arithmetic
from stae_cli.codec.cpu.affine import Placement
from stae_cli.codec.cuda.selftest import choose_form
from stae_cli.codec.device import memory_told, numbered, pick_device, ran_out, too_little_memory
from stae_cli.codec.inputs import check_channels, check_tensors, count_of, rows_of
from stae_cli.codec.packed import PackedLatents
from stae_cli.codec.tiling import Piece, rounds
from stae_cli.errors import InputError
from stae_cli.network.stupid_ae import StupidAE

Result = TypeVar("Result")

# Patches of 8x8 pixels that the decoder holds at once, about 5 kB of float32 each on the CPU.
BATCH_PATCHES = {"cpu": 32768, "cuda": 131072, "mps": 32768}
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LEAST_PATCHES = 256


class Codec:
    """A StupidAE in its inference form on one device.

    Latents are the raw encoder output. A picture's latent does not depend on what it is encoded
    with: alone or among others it has the same bytes on the same device and versions.

    Made for training loops: tensors on its device stay there and nothing waits for it;
    functions that call it compile without a graph break; the caller's autocast, gradient mode and
    precision settings are neither used nor changed. Results are computed without gradients.

    Args:
        model: the reference model, its weights are copied.
        device: where to run; `auto` takes CUDA, then Metal, then the CPU.
        dtype: of weights, activations and results; by default float16 on CUDA, else float32.
        batch_patches: patches of 8x8 pixels that the decoder holds at once; bounds its memory.
        triton: on CUDA, whether Triton kernels may run between the matrix products; they are
            compiled on first use, tried, and left out where they do not work (see `unfused`).

    Attributes:
        unfused: why a CUDA device goes without them and is slower; None where all is well.

    Raises:
        DeviceError: the device is absent, or has no room for the weights.
        InputError: another dtype, or no patches.
    """

    def __init__(
        self,
        model: StupidAE,
        *,
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
        batch_patches: int | None = None,
        triton: bool = True,
    ) -> None:
        self.architecture = model.architecture
        self.device = numbered(pick_device(device))
        half = torch.float16 if self.device.type == "cuda" else torch.float32
        self.dtype = half if dtype is None else _checked(dtype)
        if batch_patches is not None and batch_patches < 1:
            raise InputError(f"batch_patches is {batch_patches}", "give at least 1")
        self.batch_patches = batch_patches or BATCH_PATCHES[self.device.type]
        self.ran_out_of_memory = False  # `batch_patches` is then what it went on with
        # The caller's may be trained on: what is made of it later must be the same codec.
        self._model, self._triton = deepcopy(model).cpu().requires_grad_(False), triton
        on_cpu = torch.device("cpu")  # where weights are folded, whatever the caller's default is
        with memory_told(self.device), plain_arithmetic(self.device), torch.no_grad(), on_cpu:
            place = Placement(self.device, self.dtype)
            self._form, self.unfused = choose_form(self._model, place, triton=triton)
        self._number = operators.enrol(self)

    def normalize(self, latents: Tensor) -> Tensor:
        """Raw latents of any shape to (z - shift) * scale: mean 0, variance 1 over all channels.

        Raises:
            CheckpointError: the checkpoint does not record its latents' statistics.
        """
        shift, scale = self._model.latent_scaling()
        return (latents - shift) * scale

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize`: what `decode` takes.

        Raises:
            CheckpointError: the checkpoint does not record its latents' statistics.
        """
        shift, scale = self._model.latent_scaling()
        return latents / scale + shift

    @overload
    def encode(self, images: Tensor) -> Tensor: ...
    @overload
    def encode(self, images: Sequence[Tensor]) -> list[Tensor]: ...
    @torch.no_grad()
    def encode(self, images: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Images to latents.

        Args:
            images: (B, 3, H, W) or (B, H, W, 3), float in [-1, 1] or uint8, or a list of mixed
                sizes of any of these without the batch dimension.

        Returns:
            (B, 16, H/8, W/8), or a list of (16, h, w) in order; the codec's dtype and device.
            Factor and channels are the architecture's: `downsample` and `channels`.

        Raises:
            InputError: none given, a side is no multiple of the patch, or another layout.
        """
        if not isinstance(images, Tensor):
            return [latent.contiguous() for latent in self.encode_packed(images).unpack()]
        packed = self.encode_packed(images)
        return _as_batch(packed.tokens, len(images), *packed.sizes[0])

    @torch.no_grad()
    def encode_packed(self, images: Tensor | Sequence[Tensor]) -> PackedLatents:
        """Images, as `encode` takes them, to latents as one matrix of tokens: no further copies.

        Raises:
            InputError: as `encode`.
        """
        check_tensors(images, "encode")
        if isinstance(images, Tensor):
            given, sizes = [images], [self._grid_of(self._rows_of(images, 4))] * len(images)
        else:
            given = list(images)
            sizes = [self._grid_of(self._rows_of(image, 3)) for image in given]
        compiling = torch.compiler.is_compiling()
        tokens = operators.encode(given, self._number) if compiling else self.tokens_of(given)
        return PackedLatents(tokens, tuple(sizes))

    @overload
    def decode(self, latents: Tensor) -> Tensor: ...
    @overload
    def decode(self, latents: Sequence[Tensor] | PackedLatents) -> list[Tensor]: ...
    @torch.no_grad()
    def decode(self, latents: Tensor | Sequence[Tensor] | PackedLatents) -> Tensor | list[Tensor]:
        """Latents to images.

        Args:
            latents: (B, 16, h, w), or a list of (16, h, w) of mixed sizes, or packed ones; any
                float dtype.

        Returns:
            (B, 3, 8h, 8w) in [-1, 1], clamped, or a list of (3, H, W) in order; the codec's
            dtype and device.

        Raises:
            InputError: the number of channels is not this network's.
        """
        if isinstance(latents, Tensor):
            check_channels(latents, self.architecture.channels, dimensions=4)
            if torch.compiler.is_compiling():
                painted = operators.decode(list(latents), self._number)
                return torch.stack([image.permute(1, 2, 0) for image in painted]).permute(
                    0, 3, 1, 2
                )
            return self._within_memory(lambda: self._images(latents))
        listed = latents.unpack() if isinstance(latents, PackedLatents) else latents
        check_tensors(listed, "decode")
        for latent in listed:
            check_channels(latent, self.architecture.channels, dimensions=3)
        compiling = torch.compiler.is_compiling()
        return operators.decode(list(listed), self._number) if compiling else self.images_of(listed)

    def tokens_of(self, images: Sequence[Tensor]) -> Tensor:
        """`encode_packed` of images or batches, the tokens alone, without what prepares them."""
        return self._within_memory(lambda: self._tokens(images))

    def images_of(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """`decode` of a list, without what prepares it for a caller."""
        images = [self._canvas(latent) for latent in latents]
        self._within_memory(lambda: self._paint(latents, images))
        return [image.permute(2, 0, 1) for image in images]

    def empty_tokens(self, images: Sequence[Tensor]) -> Tensor:
        """Uninitialised, as large as what `tokens_of` returns."""
        rows = sum(self._positions_of(self._rows_of(image)) for image in images)
        channels = self.architecture.channels
        return torch.empty(rows, channels, dtype=self.dtype, device=self.device)

    def empty_images(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Uninitialised, as large as what `images_of` returns."""
        return [self._canvas(latent).permute(2, 0, 1) for latent in latents]

    def __reduce__(self) -> tuple[Callable[[StupidAE], Self], tuple[StupidAE]]:
        """Copied and pickled as its weights: what a library lays out is made again."""
        made_alike = partial(
            type(self),
            device=self.device,
            dtype=self.dtype,
            batch_patches=self.batch_patches,
            triton=self._triton,
        )
        return made_alike, (self._model,)

    def _images(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) to (B, 3, 8h, 8w), clamped."""
        images = self._canvas(latents)
        self._paint(list(latents), list(images))
        return images.permute(0, 3, 1, 2)

    def _within_memory(self, run: Callable[[], Result]) -> Result:
        """Tries again with half as much at once, and goes on so, where the device's memory ends.

        Raises:
            DeviceError: it does not even suffice for a little.
        """
        while True:
            try:
                return run()
            except RuntimeError as error:
                if not ran_out(error):
                    raise
                if self.batch_patches <= LEAST_PATCHES:
                    raise too_little_memory(self.device, error) from error
                self.ran_out_of_memory = True
                self.batch_patches = max(LEAST_PATCHES, self.batch_patches // 2)

    def _tokens(self, images: Sequence[Tensor]) -> Tensor:
        """Images or batches cut to patches, encoded as one pack -> (N, C).

        Bytes and floats are encoded apart: neither shows what it is encoded with.
        """
        layouts = [self._rows_of(image) for image in images]
        kinds = dict.fromkeys(rows.dtype for rows in layouts)
        with plain_arithmetic(self.device):
            packs = {kind: self._encoded([r for r in layouts if r.dtype == kind]) for kind in kinds}
        if len(packs) == 1:
            return packs[layouts[0].dtype]
        parts = []
        for rows in layouts:
            count = self._positions_of(rows)
            part, packs[rows.dtype] = packs[rows.dtype].tensor_split([count])
            parts.append(part)
        return torch.cat(parts)

    def _encoded(self, layouts: Sequence[Tensor]) -> Tensor:
        """Images (H, W, 3) or batches of one dtype -> (N, C)."""
        return self._form.encode(band for rows in layouts for band in self._bands(rows))

    def _rows_of(self, images: Tensor, *dimensions: int) -> Tensor:
        """See `rows_of`."""
        return rows_of(images, self.architecture.downsample, dimensions=dimensions or (3, 4))

    def _grid_of(self, rows: Tensor) -> tuple[int, int]:
        """The height and width of the latent of an image (H, W, 3), or of each of a batch."""
        size = self.architecture.downsample
        return rows.shape[-3] // size, rows.shape[-2] // size

    def _positions_of(self, rows: Tensor) -> int:
        """All latent positions of an image, or of a batch."""
        return count_of(rows) * math.prod(self._grid_of(rows))

    def _bands(self, rows: Tensor) -> Iterator[Tensor]:
        """Images on the device: of a batch as many at once as there are to be, large ones in bands.

        So nothing large is there twice.
        """
        height, width = self._grid_of(rows)
        if self._positions_of(rows) <= self._positions:
            yield rows.to(self.device)
        elif rows.ndim == 4:
            for part in rows.split(max(1, self._positions // (height * width))):
                yield from self._bands(part if len(part) > 1 else part[0])
        else:
            for part in rows.split(self.architecture.downsample * max(1, self._positions // width)):
                yield part.to(self.device)

    @property
    def _positions(self) -> int:
        """Latent positions that stand for as many pixels as `batch_patches`."""
        return max(1, self.batch_patches // self.architecture.units)

    def _pieces(self, latents: Sequence[Tensor]) -> Iterator[tuple[list[Piece], list[Tensor]]]:
        """Pieces of latents (C, h, w), and (h, w, C) of what the decoder is given for each."""
        sizes = [(latent.shape[1], latent.shape[2]) for latent in latents]
        form = self._form
        with plain_arithmetic(self.device):
            for pieces in rounds(
                sizes, limit=self._positions, halo=form.halo, alignment=form.alignment
            ):
                seen = [latents[p.index][:, p.rows.seen, p.columns.seen] for p in pieces]
                yield pieces, [part.to(self.device, self.dtype).permute(1, 2, 0) for part in seen]

    def _paint(self, latents: Sequence[Tensor], images: Sequence[Tensor]) -> None:
        """(C, h, w) on any device into (8h, 8w, 3), clamped."""
        for pieces, seen in self._pieces(latents):
            for piece, pixels in zip(pieces, self._form.decode(seen), strict=True):
                inner, target = self._inner(images[piece.index], piece, pixels)
                torch.clamp(inner, -1, 1, out=target)

    def _canvas(self, latents: Tensor) -> Tensor:
        """Room for the images (..., 8h, 8w, 3) of latents (..., C, h, w)."""
        size, (height, width) = self.architecture.downsample, latents.shape[-2:]
        shape = (*latents.shape[:-3], height * size, width * size, 3)
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _inner(self, image: Tensor, piece: Piece, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Of a piece's pixels those that are the image's, and where it has them."""
        size, rows, columns = self.architecture.downsample, piece.rows, piece.columns
        inner = pixels[rows.inner(size), columns.inner(size)]
        return inner, image[rows.target(size), columns.target(size)]


def _checked(dtype: torch.dtype) -> torch.dtype:
    if dtype not in DTYPES:
        raise InputError(f"cannot compute in {dtype}", "give torch.float16, bfloat16 or float32")
    return dtype


def _as_batch(tokens: Tensor, count: int, height: int, width: int) -> Tensor:
    """Tokens (count * height * width, C) to latents (count, C, height, width)."""
    return tokens.view(count, height, width, -1).permute(0, 3, 1, 2).contiguous()

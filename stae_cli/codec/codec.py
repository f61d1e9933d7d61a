"""The codec: images to latents and back on one device, any sizes, in bounded memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Self, overload

import torch
from torch import Tensor

from stae_cli.codec import compile_ops as operators
from stae_cli.codec.cpu.affine import Placement
from stae_cli.codec.cuda.selftest import choose_form
from stae_cli.codec.device import dtype_name, memory_errors, numbered, pick_device, plain_arithmetic
from stae_cli.codec.tensors import (
    PackedLatents,
    PerChannel,
    channel_numbers,
    check_channels,
    check_tensors,
    rows_of,
)
from stae_cli.codec.tiling import Tiler
from stae_cli.errors import InputError
from stae_cli.network.stupid_ae import StupidAE

# Patches of 8x8 pixels that the decoder holds at once, about 5 kB of float32 each on the CPU.
BATCH_PATCHES = {"cpu": 32768, "cuda": 131072, "mps": 32768}
_log = logging.getLogger(__name__)

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class Codec:
    """A StupidAE in its inference form on one device.

    Latents are the raw encoder output. A picture's latent does not depend on what it is encoded
    with: alone or among others it has the same bytes on the same device and versions.

    Made for training loops: tensors on its device stay there and nothing waits for it; functions
    that call it compile without a graph break; the caller's autocast, gradient mode and precision
    settings are neither used nor changed. Results are computed without gradients.

    Args:
        model: the reference model; its weights are copied.
        device: where to run; `auto` takes CUDA, then Metal, then the CPU.
        dtype: of weights, activations and results; by default float16 on CUDA, else float32.
        batch_patches: patches of 8x8 pixels that the decoder holds at once; bounds its memory.
        triton: on CUDA, whether Triton kernels may run between the matrix products. They are
            compiled on first use, compared with torch's functions, and left out where they do not
            work (see `unfused`).

    Attributes:
        architecture: the sizes of the network.
        unfused: why a CUDA device goes without Triton and is slower; None where all is well.
        tiler: what computes, for borders other than this one.

    Raises:
        DeviceError: the device is absent, or has too little memory for the weights.
        InputError: another dtype, or no patches.

    Example:
        >>> import torch
        >>> from stae_cli import Codec, StupidAE
        >>> codec = Codec(StupidAE.from_checkpoint("builtin"), device="cpu")
        >>> latents = codec.encode(torch.zeros(2, 3, 64, 96))
        >>> codec.decode(latents).shape
        torch.Size([2, 3, 64, 96])
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
        # The caller's may be trained on: what is made of it later must be the same codec.
        self._model, self._triton = deepcopy(model).cpu().requires_grad_(False), triton
        on_cpu = torch.device("cpu")  # where weights are folded, whatever the caller's default is
        with memory_errors(self.device), plain_arithmetic(self.device), torch.no_grad(), on_cpu:
            place = Placement(self.device, self.dtype)
            form, self.unfused = choose_form(self._model, place, triton=triton)
        at_once = batch_patches or BATCH_PATCHES[self.device.type]
        self.tiler = Tiler(form, self.architecture, at_once)
        self._number = operators.register(self.tiler)
        kind, threads = dtype_name(self.dtype), torch.get_num_threads()
        which = f"plain form ({self.unfused})" if self.unfused else "fast form"
        facts = self.device, kind, which, at_once, threads
        _log.info("device %s, %s, %s, %d patches at once, %d threads", *facts)

    @property
    def batch_patches(self) -> int:
        """Patches of 8x8 pixels that are decoded at once, fewer after memory has run out."""
        return self.tiler.batch_patches

    @property
    def ran_out_of_memory(self) -> bool:
        """Whether the device has run out of memory, so that `batch_patches` was reduced."""
        return self.tiler.ran_out_of_memory

    def normalize(
        self, latents: Tensor, *, shift: PerChannel | None = None, scale: PerChannel | None = None
    ) -> Tensor:
        """Raw latents of any shape to (z - shift) * scale: mean 0, variance 1 over all channels.

        Args:
            latents: (..., C, h, w), or tokens (N, C).
            shift: one number, or one for each channel; by default what the checkpoint records, or 0
                if `scale` is given.
            scale: likewise, or 1.

        Raises:
            CheckpointError: the checkpoint does not record its latents' statistics.
            InputError: numbers for other channels than the latents have.

        Example:
            >>> import torch
            >>> from stae_cli import Codec, StupidAE
            >>> codec = Codec(StupidAE.from_checkpoint("builtin"), device="cpu")
            >>> latents = codec.encode(torch.zeros(1, 3, 64, 64))
            >>> torch.allclose(codec.denormalize(codec.normalize(latents)), latents, atol=1e-5)
            True
        """
        shift, scale = self._scaling(latents, shift, scale)
        return (latents - shift) * scale

    def denormalize(
        self, latents: Tensor, *, shift: PerChannel | None = None, scale: PerChannel | None = None
    ) -> Tensor:
        """The inverse of `normalize`, with the same shift and scale: what `decode` takes.

        Raises:
            CheckpointError: the checkpoint does not record its latents' statistics.
            InputError: numbers for other channels than the latents have.
        """
        shift, scale = self._scaling(latents, shift, scale)
        return latents / scale + shift

    def _scaling(
        self, latents: Tensor, shift: PerChannel | None, scale: PerChannel | None
    ) -> tuple[Tensor | float, Tensor | float]:
        """Shift and scale in a form that multiplies the latents."""
        if shift is None and scale is None:
            return self._model.latent_scaling()
        return (
            channel_numbers(0.0 if shift is None else shift, "shift", latents),
            channel_numbers(1.0 if scale is None else scale, "scale", latents),
        )

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
            InputError: no images, a side that is not a multiple of the patch, or another layout.

        Example:
            >>> import torch
            >>> from stae_cli import Codec, StupidAE
            >>> codec = Codec(StupidAE.from_checkpoint("builtin"), device="cpu")
            >>> codec.encode(torch.rand(2, 3, 64, 96) * 2 - 1).shape
            torch.Size([2, 16, 8, 12])
            >>> photo = torch.randint(256, (64, 40, 3), dtype=torch.uint8)
            >>> [tuple(latent.shape) for latent in codec.encode([photo, photo[:32]])]
            [(16, 8, 5), (16, 4, 5)]
        """
        packed = self.encode_packed(images)
        if not isinstance(images, Tensor):
            return [latent.contiguous() for latent in packed.unpack()]
        height, width = packed.sizes[0]
        grids = packed.tokens.view(len(images), height, width, -1)
        return grids.permute(0, 3, 1, 2).contiguous()

    @torch.no_grad()
    def encode_packed(self, images: Tensor | Sequence[Tensor]) -> PackedLatents:
        """Images, as `encode` takes them, to latents as one matrix of tokens: no further copies.

        Raises:
            InputError: as `encode`.

        Example:
            >>> import torch
            >>> from stae_cli import Codec, StupidAE
            >>> codec = Codec(StupidAE.from_checkpoint("builtin"), device="cpu")
            >>> packed = codec.encode_packed([torch.zeros(3, 64, 40), torch.zeros(3, 16, 16)])
            >>> packed.tokens.shape, packed.sizes
            (torch.Size([44, 16]), ((8, 5), (2, 2)))
        """
        check_tensors(images, "encode")
        patch, grid_of = self.architecture.downsample, self.tiler.grid_of
        if isinstance(images, Tensor):
            rows = rows_of(images, patch, dimensions=(4,))
            given, sizes = [images], [grid_of(rows)] * len(images)
        else:
            given = list(images)
            sizes = [grid_of(rows_of(image, patch, dimensions=(3,))) for image in given]
        if torch.compiler.is_compiling():
            tokens = operators.encode(given, self._number)
        else:
            tokens = self.tiler.tokens_of(given)
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

        Example:
            >>> import torch
            >>> from stae_cli import Codec, StupidAE
            >>> codec = Codec(StupidAE.from_checkpoint("builtin"), device="cpu")
            >>> codec.decode(torch.zeros(2, 16, 8, 12)).shape
            torch.Size([2, 3, 64, 96])
            >>> packed = codec.encode_packed([torch.zeros(3, 64, 40), torch.zeros(3, 16, 16)])
            >>> [tuple(image.shape) for image in codec.decode(packed)]
            [(3, 64, 40), (3, 16, 16)]
        """
        compiling = torch.compiler.is_compiling()
        if isinstance(latents, Tensor):
            check_channels(latents, self.architecture.channels, dimensions=4)
            if not compiling:
                return self.tiler.batch_of(latents)
            images = operators.decode(list(latents), self._number)
            # With the strides of `batch_of`.
            return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
        listed = latents.unpack() if isinstance(latents, PackedLatents) else latents
        check_tensors(listed, "decode")
        for latent in listed:
            check_channels(latent, self.architecture.channels, dimensions=3)
        if compiling:
            return operators.decode(list(listed), self._number)
        return self.tiler.images_of(listed)

    def in_float32(self) -> Self:
        """The same weights on the same device in float32, by torch's own functions alone."""
        return type(self)(
            self._model,
            device=self.device,
            dtype=torch.float32,
            batch_patches=self.batch_patches,
            triton=False,
        )

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


def _checked(dtype: torch.dtype) -> torch.dtype:
    if dtype not in DTYPES:
        raise InputError(f"cannot compute in {dtype}", "give torch.float16, bfloat16 or float32")
    return dtype

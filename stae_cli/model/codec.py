"""The codec: images to latents and back on one device, any sizes, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TypeVar, cast, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stae_cli.errors import DeviceError, InputError
from stae_cli.model.inference import InferenceForm
from stae_cli.model.stupid_ae import StupidAE
from stae_cli.model.tiling import Piece, rounds

Pixels = npt.NDArray[np.uint8]  # (H, W, 3) RGB
Latent = npt.NDArray[np.floating]  # (C, h, w)
Result = TypeVar("Result")

# Patches of 8x8 pixels that the decoder holds at once, about 5 kB of float32 each on the CPU.
BATCH_PATCHES = {"cpu": 32768, "cuda": 131072, "mps": 32768}
LEAST_PATCHES = 256


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps` as a device of this machine.

    Raises:
        DeviceError: it was asked for and is absent; there is no silent fall-back.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise DeviceError(
            f"no device `{name}`: {found or 'no'} CUDA device{'s' * (found != 1)} visible",
            "use `--device cpu`, or check the driver and CUDA_VISIBLE_DEVICES",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("no device `mps`: torch finds no Metal here", "use `--device cpu`")
    if device.type not in BATCH_PATCHES:
        raise DeviceError(f"device `{name}` is not supported", "use cuda, cuda:N, mps or cpu")
    return device


class Codec:
    """A StupidAE in its inference form on one device.

    Latents are the raw encoder output. A picture's latent does not depend on what it is encoded
    with: alone or among others it has the same bytes on the same device and versions.

    Args:
        model: the reference model, its weights are copied.
        device: where to run; `auto` takes CUDA, then Metal, then the CPU.
        dtype: of weights, activations and results; by default float16 on CUDA, else float32.
        batch_patches: patches of 8x8 pixels that the decoder holds at once; bounds its memory.

    Raises:
        DeviceError: the device is absent.
    """

    def __init__(
        self,
        model: StupidAE,
        *,
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
        batch_patches: int | None = None,
    ) -> None:
        self.architecture = model.architecture
        self.device = pick_device(device)
        half = torch.float16 if self.device.type == "cuda" else torch.float32
        self.dtype = half if dtype is None else dtype
        self.batch_patches = batch_patches or BATCH_PATCHES[self.device.type]
        self.ran_out_of_memory = False  # `batch_patches` is then what it went on with
        self._model = model
        self._form = InferenceForm(model, device=self.device, dtype=self.dtype)

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
            images: (B, 3, H, W) float in [-1, 1], or (B, H, W, 3) uint8, or a list of mixed
                sizes of either without the batch dimension.

        Returns:
            (B, 16, H/8, W/8), or a list of (16, h, w) in order; the codec's dtype and device.
            Factor and channels are the architecture's: `downsample` and `channels`.

        Raises:
            InputError: none given, a side is no multiple of the patch, or another layout.
        """
        if not len(images):
            raise InputError("no images to encode", "give at least one")
        latents = self._within_memory(lambda: self._encoded(list(images)))
        return torch.stack(latents) if isinstance(images, Tensor) else latents

    @overload
    def decode(self, latents: Tensor) -> Tensor: ...
    @overload
    def decode(self, latents: Sequence[Tensor]) -> list[Tensor]: ...
    @torch.no_grad()
    def decode(self, latents: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Latents to images.

        Args:
            latents: (B, 16, h, w), or a list of (16, h, w) of mixed sizes; any float dtype.

        Returns:
            (B, 3, 8h, 8w) in [-1, 1], clamped, or a list of (3, H, W) in order; the codec's
            dtype and device.

        Raises:
            InputError: the number of channels is not this network's.
        """
        if isinstance(latents, Tensor):
            self._check_channels(latents, dimensions=4)
            images = self._canvas(latents)
            self._within_memory(lambda: self._decode(list(latents), list(images)))
            return images.clamp_(-1, 1).permute(0, 3, 1, 2)
        for latent in latents:
            self._check_channels(latent, dimensions=3)
        several = [self._canvas(latent) for latent in latents]
        self._within_memory(lambda: self._decode(latents, several))
        return [image.clamp_(-1, 1).permute(2, 0, 1) for image in several]

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
    def _in_float32(self) -> Codec:
        """The same weights on the same device, for what overflows half precision."""
        return Codec(
            self._model,
            device=self.device,
            dtype=torch.float32,
            batch_patches=self.batch_patches,
        )

    def _within_memory(self, run: Callable[[], Result]) -> Result:
        """Tries again with half as much at once, and goes on so, where the device's memory ends.

        Raises:
            DeviceError: it does not even suffice for a little.
        """
        while True:
            try:
                return run()
            except torch.OutOfMemoryError as error:
                if self.batch_patches <= LEAST_PATCHES:
                    raise DeviceError(
                        f"device `{self.device}` has too little free memory",
                        "end what else runs on it, or use `--device cpu`",
                    ) from error
                self.ran_out_of_memory = True
                self.batch_patches = max(LEAST_PATCHES, self.batch_patches // 2)

    def _again(
        self, broken: Sequence[int], run: Callable[[Codec], list[Result | None]]
    ) -> list[Result | None]:
        """What was not finite, once more in float32; None where that cannot help."""
        if not broken or self.dtype == torch.float32:
            return [None] * len(broken)
        return run(self._in_float32)

    def _encoded(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Images cut to patches, encoded as one pack -> (C, h, w) each; at least one."""
        layouts = [self._rows_of(image) for image in images]
        if len({rows.dtype for rows in layouts}) > 1:  # uint8 and float must not be promoted
            layouts = [_as_float(rows) for rows in layouts]
        with _plain_arithmetic(self.device):
            latents = self._form.encode(patches for rows in layouts for patches in self._cut(rows))
        size = self.architecture.downsample
        grids = [(rows.shape[0] // size, rows.shape[1] // size) for rows in layouts]
        parts = latents.split([height * width for height, width in grids])
        return [
            part.unflatten(0, grid).permute(2, 0, 1).contiguous()
            for part, grid in zip(parts, grids, strict=True)
        ]

    def _rows_of(self, image: Tensor) -> Tensor:
        """One image as (H, W, 3), uint8 or float in [-1, 1], where it lies."""
        size = self.architecture.downsample
        if image.dtype == torch.uint8 and image.ndim == 3 and image.shape[2] == 3:
            rows = image
        elif image.is_floating_point() and image.ndim == 3 and image.shape[0] == 3:
            rows = image.permute(1, 2, 0)
        else:
            raise InputError(
                f"cannot encode a {image.dtype} tensor of shape {tuple(image.shape)}",
                "give (B, 3, H, W) float in [-1, 1] or (B, H, W, 3) uint8",
            )
        height, width = rows.shape[:2]
        if height % size or width % size or not height or not width:
            raise InputError(
                f"an image of {width}x{height} has a side that is no multiple of {size}",
                "pad or crop it first; `stae encode` pads and records the true size",
            )
        return rows

    def _cut(self, rows: Tensor) -> Iterator[Tensor]:
        """The patches (n, patch * patch * 3) of an image (H, W, 3), on the device, in order.

        They come in bands, so that a large image is never there twice.
        """
        size = self.architecture.downsample
        band = size * max(1, self._positions * size // rows.shape[1])
        for part in rows.split(band):
            grid = part.to(self.device).unflatten(1, (-1, size)).unflatten(0, (-1, size))
            yield grid.transpose(1, 2).flatten(2).flatten(0, 1)

    @property
    def _positions(self) -> int:
        """Latent positions that stand for as many pixels as `batch_patches`."""
        return max(1, self.batch_patches // self.architecture.units)

    def _pieces(self, latents: Sequence[Tensor]) -> Iterator[tuple[list[Piece], list[Tensor]]]:
        """Pieces of latents (C, h, w), and (h, w, C) of what the decoder is given for each."""
        sizes = [(latent.shape[1], latent.shape[2]) for latent in latents]
        form = self._form
        with _plain_arithmetic(self.device):
            for pieces in rounds(
                sizes, limit=self._positions, halo=form.halo, alignment=form.alignment
            ):
                seen = [latents[p.index][:, p.rows.seen, p.columns.seen] for p in pieces]
                yield pieces, [part.permute(1, 2, 0).to(self.device, self.dtype) for part in seen]

    def _decode(self, latents: Sequence[Tensor], images: Sequence[Tensor]) -> None:
        """(C, h, w) on any device into (8h, 8w, 3), unclamped."""
        for pieces, seen in self._pieces(latents):
            for piece, pixels in zip(pieces, self._form.decode(seen), strict=True):
                self._place(images[piece.index], piece, pixels)

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

    def _canvas(
        self, latents: Tensor, *, dtype: torch.dtype | None = None, device: str | None = None
    ) -> Tensor:
        """Room for the images (..., 8h, 8w, 3) of latents (..., C, h, w)."""
        size, (height, width) = self.architecture.downsample, latents.shape[-2:]
        shape = (*latents.shape[:-3], height * size, width * size, 3)
        return torch.empty(shape, dtype=dtype or self.dtype, device=device or self.device)

    def _place(self, image: Tensor, piece: Piece, pixels: Tensor) -> None:
        size, rows, columns = self.architecture.downsample, piece.rows, piece.columns
        inner = pixels[rows.inner(size), columns.inner(size)]
        image[rows.target(size), columns.target(size)] = inner

    def _check_channels(self, latents: Tensor, *, dimensions: int) -> None:
        channels = self.architecture.channels
        if latents.ndim != dimensions or latents.shape[-3] != channels or not latents.numel():
            raise InputError(
                f"cannot decode a tensor of shape {tuple(latents.shape)}",
                f"latents of this network are (B, {channels}, h, w), or a list of them without B",
            )


def _as_float(grid: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1], half precision to float32."""
    return grid.float().div_(127.5).sub_(1) if grid.dtype == torch.uint8 else grid.float()


def _to_numpy(latent: Tensor) -> Latent:
    plain = latent.float() if latent.dtype == torch.bfloat16 else latent
    return cast(Latent, plain.cpu().numpy())


def _to_tensor(picture: Pixels) -> Tensor:
    return torch.from_numpy(np.require(picture, requirements=["C", "W"]))  # torch wants both


@contextmanager
def _plain_arithmetic(device: torch.device) -> Iterator[None]:
    """Turns off the caller's autocast and every reduced-precision shortcut, then restores them."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    precision = torch.get_float32_matmul_precision()
    reduction, tf32 = matmul.allow_fp16_reduced_precision_reduction, cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("highest")
        matmul.allow_fp16_reduced_precision_reduction = False
        cudnn.allow_tf32 = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        matmul.allow_fp16_reduced_precision_reduction = reduction
        cudnn.allow_tf32 = tf32

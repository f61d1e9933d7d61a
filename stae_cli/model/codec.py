"""The codec: images to latents and back on one device, any sizes, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, cast, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stae_cli.errors import DeviceError, InputError
from stae_cli.model.inference import InferenceForm
from stae_cli.model.stupid_ae import StupidAE

Pixels = npt.NDArray[np.uint8]  # (H, W, 3) RGB
Latent = npt.NDArray[np.floating]  # (C, h, w)
Result = TypeVar("Result")

# Latent positions that the decoder holds at once, a little over 30 kB of float32 each.
BATCH_PATCHES = {"cpu": 16384, "cuda": 131072, "mps": 32768}


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
        batch_patches: latent positions that the decoder holds at once; bounds its memory.

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

    def in_float32(self) -> Codec:
        """The same weights on the same device in float32, for what overflows half precision."""
        return Codec(
            self._model,
            device=self.device,
            dtype=torch.float32,
            batch_patches=self.batch_patches,
        )

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

        Raises:
            InputError: none given, a side is no multiple of the patch, or another layout.
        """
        if not len(images):
            raise InputError("no images to encode", "give at least one")
        if isinstance(images, Tensor):
            return torch.stack(self._encoded(list(images)))
        return self._encoded(images)

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
            self._check_channels(latents)
            return self._decoded(latents).clamp_(-1, 1).permute(0, 3, 1, 2)
        results: dict[int, Tensor] = {}
        for group in _equal_shapes(latents):
            images = self.decode(torch.stack([latents[index].to(self.device) for index in group]))
            results.update(zip(group, images, strict=True))
        return [results[index] for index in range(len(latents))]

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
        results: list[Pixels | None] = [None] * len(latents)
        broken: list[int] = []
        for group in _equal_shapes(latents):
            batch = np.stack([latents[index] for index in group])
            with torch.no_grad():
                images = self._decoded(torch.from_numpy(batch)).float()
                finite = images.isfinite().flatten(1).all(1).tolist()
                levels = images.add_(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
            for index, pixels, good in zip(group, levels.cpu().numpy(), finite, strict=True):
                if good:
                    results[index] = pixels
                else:
                    broken.append(index)
        again = self._again(broken, lambda wide: wide.decode_pixels([latents[i] for i in broken]))
        for index, picture in zip(broken, again, strict=True):
            results[index] = picture
        return results

    def _again(
        self, broken: Sequence[int], run: Callable[[Codec], list[Result | None]]
    ) -> list[Result | None]:
        """What was not finite, once more in float32; None where that cannot help."""
        if not broken or self.dtype == torch.float32:
            return [None] * len(broken)
        return run(self.in_float32())

    def _encoded(self, images: Sequence[Tensor]) -> list[Tensor]:
        """At least one image, each cut to patches, encoded as one pack -> (C, h, w) each."""
        grids = [self._cut(image) for image in images]  # (h, w, patch * patch * 3) each
        if len({grid.dtype for grid in grids}) > 1:  # uint8 and float must not be promoted
            grids = [_as_float(grid) for grid in grids]
        with _plain_arithmetic(self.device):
            rows = self._form.encode(torch.cat([grid.flatten(0, 1) for grid in grids]))
        parts = rows.split([grid.shape[0] * grid.shape[1] for grid in grids])
        return [
            part.unflatten(0, grid.shape[:2]).permute(2, 0, 1).contiguous()
            for part, grid in zip(parts, grids, strict=True)
        ]

    def _cut(self, image: Tensor) -> Tensor:
        """One image to its patches (h, w, patch * patch * 3), uint8 or float in [-1, 1]."""
        size = self.architecture.patch
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
        grid = rows.unflatten(1, (-1, size)).unflatten(0, (-1, size)).transpose(1, 2)
        return grid.flatten(2).to(self.device)

    def _decoded(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) on any device -> (B, 8h, 8w, 3) unclamped, in bounded memory."""
        grid = latents.to(self.device, self.dtype).permute(0, 2, 3, 1)
        height, width = grid.shape[1:3]
        with _plain_arithmetic(self.device):
            if height * width > self.batch_patches:
                return torch.stack([self._decode_tiled(one) for one in grid])
            group = max(1, self.batch_patches // (height * width))
            return torch.cat([self._form.decode(part) for part in grid.split(group)])

    def _decode_tiled(self, grid: Tensor) -> Tensor:
        """One large (h, w, C), tile by tile; each tile sees its real neighbours."""
        height, width = grid.shape[:2]
        patch, halo = self._form.patch, self._form.halo
        side = max(1, int(self.batch_patches**0.5) - 2 * halo)
        image = grid.new_empty(height * patch, width * patch, 3)
        for top in range(0, height, side):
            for left in range(0, width, side):
                bottom, right = min(top + side, height), min(left + side, width)
                # Clipped at the image's border, never padded: biases make zeros wrong there.
                up, start = max(top - halo, 0), max(left - halo, 0)
                tile = grid[up : bottom + halo, start : right + halo]
                pixels = self._form.decode(tile[None])[0]
                image[top * patch : bottom * patch, left * patch : right * patch] = pixels[
                    (top - up) * patch : (bottom - up) * patch,
                    (left - start) * patch : (right - start) * patch,
                ]
        return image

    def _check_channels(self, latents: Tensor) -> None:
        channels = self.architecture.latent_channels
        if latents.ndim != 4 or latents.shape[1] != channels or not latents.numel():
            raise InputError(
                f"cannot decode a tensor of shape {tuple(latents.shape)}",
                f"latents of this network are (B, {channels}, h, w)",
            )


def _as_float(grid: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1], half precision to float32."""
    return grid.float().div_(127.5).sub_(1) if grid.dtype == torch.uint8 else grid.float()


def _equal_shapes(arrays: Sequence[Tensor | Latent]) -> list[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, array in enumerate(arrays):
        groups.setdefault(tuple(array.shape), []).append(index)
    return list(groups.values())


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

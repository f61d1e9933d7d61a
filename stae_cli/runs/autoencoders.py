"""The autoencoders that `roundtrip` compares: stae's own, and those of diffusers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stae_cli.checkpoints.card import card, in_words
from stae_cli.checkpoints.checkpoint import Checkpoint
from stae_cli.checkpoints.peers import load_peer
from stae_cli.codec.device import dtype_name, memory_errors, plain_arithmetic
from stae_cli.codec.pixel_codec import PixelCodec
from stae_cli.errors import CheckpointError, DeviceError
from stae_cli.images.buffers import Pixels
from stae_cli.images.resize import Prepared
from stae_cli.latents.format import Latent, is_finite

NOT_FINITE = "the network gave NaN or infinity, or latents that exceed float16"
PROBE = 128, 256  # height and width in pixels; what known autoencoders divide sides by


class Autoencoder(ABC):
    """Turns pictures into latents, rounds those to float16 as files do, and decodes them.

    Each pads pictures to a multiple of its own, so that its figures do not depend on the others.

    Attributes:
        name: unique in a run, and a part of file names.
        downsample: how many pixels a latent position has on a side.
        channels: of its latents.
        parameters: how many weights it has.
    """

    name: str
    downsample: int
    channels: int
    parameters: int

    def begin(self, pictures: Sequence[Prepared]) -> Callable[[], list[Pixels | str]]:
        """Starts on pictures; the returned function waits for the reconstructions (H, W, 3).

        They have the size before padding. A text stands for a picture without one, and says why.
        """
        finish = self._begin([padded(picture, self.downsample) for picture in pictures])

        def cut() -> list[Pixels | str]:
            return [
                made if isinstance(made, str) else made[: picture.height, : picture.width]
                for picture, made in zip(pictures, finish(), strict=True)
            ]

        return cut

    @abstractmethod
    def _begin(self, pictures: Sequence[Pixels]) -> Callable[[], list[Pixels | str]]:
        """The same for (H, W, 3) whose sides are multiples; reconstructions are of that size."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What `metrics.json` records of it."""

    @abstractmethod
    def facts(self) -> list[tuple[str, str]]:
        """What the report says of it."""


class OwnAutoencoder(Autoencoder):
    """A network of stae.

    Args:
        name: see `Autoencoder`.
        codec: runs it.
        checkpoint: its weights.
    """

    def __init__(self, name: str, codec: PixelCodec, checkpoint: Checkpoint) -> None:
        self.name, self.codec, self.checkpoint = name, codec, checkpoint
        self.downsample = codec.architecture.downsample
        self.channels = codec.architecture.channels
        self.parameters = checkpoint.parameters

    def _begin(self, pictures: Sequence[Pixels]) -> Callable[[], list[Pixels | str]]:
        encoded = self.codec.begin_encoding(pictures)
        return lambda: self._decoded(encoded())

    def _decoded(self, latents: Sequence[Latent | None]) -> list[Pixels | str]:
        results: list[Pixels | str] = [NOT_FINITE] * len(latents)
        with np.errstate(over="ignore"):
            halves = [None if z is None else z.astype(np.float16) for z in latents]
        good = {i: half for i, half in enumerate(halves) if half is not None and is_finite(half)}
        decoded = self.codec.decode_pixels(list(good.values()))
        for index, pixels in zip(good, decoded, strict=True):
            results[index] = NOT_FINITE if pixels is None else pixels
        return results

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights": self.checkpoint.name,
            "weights_sha256": self.checkpoint.fingerprint,
            "compute_dtype": dtype_name(self.codec.dtype),
        }

    def facts(self) -> list[tuple[str, str]]:
        return [("computed in", dtype_name(self.codec.dtype)), *in_words(card(self.checkpoint))]


class PeerAutoencoder(Autoencoder):
    """An autoencoder of diffusers, in float32, one picture at a time.

    Args:
        name: see `Autoencoder`.
        folder: what `load_peer` takes.
        device: where it runs.

    Raises:
        CheckpointError: the folder holds no autoencoder for pictures.
        StaeError: diffusers is not installed.
    """

    def __init__(self, name: str, folder: Path, device: torch.device) -> None:
        self.name, self.folder, self.device = name, folder, device
        self.model: Any = load_peer(folder)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.frames = any(p.ndim == 5 for p in self.model.parameters())  # made for videos
        try:
            with memory_errors(device):
                self.model = self.model.to(device)
                latent = self._encoded(np.zeros((*PROBE, 3), np.uint8))
                if self._decoded(latent).shape != (1, 3, *PROBE):
                    raise ValueError("it gives pictures of another size")
        except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise CheckpointError(
                f"`{folder}`: {self.kind} does not take RGB pictures: {reason}"
            ) from error
        self.channels = latent.shape[1]
        self.downsample = max(PROBE[0] // latent.shape[-2], PROBE[1] // latent.shape[-1])

    def _begin(self, pictures: Sequence[Pixels]) -> Callable[[], list[Pixels | str]]:
        return lambda: [self._reconstructed(pixels) for pixels in pictures]

    def _reconstructed(self, pixels: Pixels) -> Pixels | str:
        try:
            with memory_errors(self.device):
                latent = self._encoded(pixels)
                image = self._decoded(latent)
        except DeviceError as error:  # others may be smaller
            return error.message
        if image.shape != (1, 3, *pixels.shape[:2]):
            return f"its reconstruction has another size: {tuple(image.shape)}"
        if not (bool(latent.isfinite().all()) and bool(image.isfinite().all())):
            return NOT_FINITE
        levels = image.clamp(-1, 1).add(1).mul(127.5).round().to("cpu", torch.uint8)
        return np.ascontiguousarray(levels[0].permute(1, 2, 0).numpy())

    @torch.no_grad()
    def _encoded(self, pixels: Pixels) -> Tensor:
        """(H, W, 3) uint8 to a latent in float16, of a distribution its mode."""
        image = torch.from_numpy(pixels.copy()).to(self.device)  # buffers are read-only
        image = image.permute(2, 0, 1)[None].float().div(127.5).sub(1)
        with plain_arithmetic(self.device):
            output = self.model.encode(image[:, :, None] if self.frames else image)
        found = output.latent_dist.mode() if hasattr(output, "latent_dist") else None
        for name in ("latents", "latent"):
            found = getattr(output, name, None) if found is None else found
        if not isinstance(found, Tensor):
            raise TypeError("its `encode` gives no latents")
        return found.half()

    @torch.no_grad()
    def _decoded(self, latent: Tensor) -> Tensor:
        """A latent to (1, 3, H, W), about -1 to 1."""
        with plain_arithmetic(self.device):
            image: Tensor = self.model.decode(latent.float()).sample
        return image[:, :, 0] if self.frames else image

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "diffusers": self.kind, "compute_dtype": "float32"}

    @property
    def kind(self) -> str:
        return type(self.model).__name__

    def facts(self) -> list[tuple[str, str]]:
        return [
            ("computed in", "float32"),
            ("from", f"the folder {self.folder.resolve().name}"),
            ("class", f"{self.kind} of diffusers"),
            ("parameters", str(self.parameters)),
        ]


def padded(picture: Prepared, multiple: int) -> Pixels:
    """A picture whose sides are the next multiples; its last column and row are repeated."""
    sides = [-(-side // multiple) * multiple for side in (picture.height, picture.width)]
    if picture.pixels.shape[:2] == tuple(sides):
        return picture.pixels
    inner = picture.pixels[: picture.height, : picture.width]
    more = [(0, side - has) for side, has in zip(sides, inner.shape[:2], strict=True)]
    return np.pad(inner, [*more, (0, 0)], mode="edge")

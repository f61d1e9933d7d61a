"""What is known of a trained network: PSNR on validation photos, latent statistics, metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stae_cli._version import __version__
from stae_cli.codec.pixel_codec import PixelCodec
from stae_cli.errors import InputError, StaeError
from stae_cli.images.buffers import Pixels
from stae_cli.images.read import open_image
from stae_cli.images.resize import Prep, prepare
from stae_cli.metrics import HALF_RANGE, mean_psnr, psnr
from stae_cli.network.architecture import UNIT
from stae_cli.network.stupid_ae import StupidAE
from stae_cli.storage.entry import Entry
from stae_cli.training.loop import DivergedError, Loop
from stae_cli.training.photos import Crops, PhotoSet, digest_of, list_photos
from stae_cli.training.recipe import TrainSettings

POSITIONS = 1 << 17  # of 8x8 pixels, or as many pixels in larger ones
PURPOSE = 2


class Validation:
    """Photos that are encoded and decoded whole, through float16 latents and 8-bit pixels.

    Sides that are not a multiple of the patch are cropped.

    Raises:
        StaeError: the folder has no images, or one cannot be read.
    """

    def __init__(self, folder: Path, *, patch: int, device: torch.device) -> None:
        listing = list_photos(folder)
        for problem in listing.problems:
            raise _unusable(problem.key, problem.reason)
        self.device, self.patch = device, patch
        self.keys = [entry.key for entry in listing.entries]
        self.pictures = [_read(entry, patch) for entry in listing.entries]

    def trained_on(self, photos: PhotoSet) -> list[str]:
        """Keys of the photos whose pixels are trained on too, whatever their names and formats."""
        shapes = {picture.shape for picture in self.pictures}
        seen = {
            digest_of(cropped)
            for photo in chain.from_iterable(photos.sources)
            if (cropped := centre(photo, patch=self.patch)).shape in shapes
        }
        pairs = zip(self.keys, self.pictures, strict=True)
        return [key for key, picture in pairs if digest_of(picture) in seen]

    def psnr(self, model: StupidAE) -> float:
        """The mean of the PSNR of each photo that differs at all, in dB; infinite if none does.

        Raises:
            DivergedError: the network gives NaN or infinity.
        """
        made = reconstructions(model, self.pictures, self.device)
        return mean_psnr([_psnr(*pair) for pair in zip(self.pictures, made, strict=True)])


def reconstructions(
    model: StupidAE, pictures: Sequence[Pixels], device: torch.device
) -> list[Pixels]:
    """The network's reconstructions of pictures whose sides the patch divides.

    Raises:
        DivergedError: it gives NaN or infinity.
    """
    codec = PixelCodec(model, device=device, dtype=torch.float32)
    results = []
    for picture in pictures:
        latent = codec.encode_pixels([picture])[0]
        pixels = None if latent is None else codec.decode_pixels([latent.astype(np.float16)])[0]
        if pixels is None:
            raise DivergedError("the network gives NaN or infinity")
        results.append(pixels)
    return results


def _read(entry: Entry, patch: int) -> Pixels:
    try:
        with entry.open() as file:
            image = open_image(file, name=entry.key)
            return prepare(image, Prep(edges="crop"), patch=patch).pixels
    except (InputError, OSError) as error:
        raise _unusable(entry.place, str(error)) from error


def _unusable(place: str, reason: str) -> StaeError:
    return StaeError(f"cannot validate on `{place}`: {reason}", "take it out of the folder")


def centre(photo: Pixels, *, patch: int, longest: int | None = None) -> Pixels:
    """The middle of a photo, with sides that the patch divides and that are at most `longest`."""
    height, width = (min(side, longest or side) // patch * patch for side in photo.shape[:2])
    top, left = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
    return photo[top : top + height, left : left + width]


def _psnr(original: Pixels, reconstruction: Pixels) -> float:
    difference = np.subtract(original, reconstruction, dtype=np.float32)
    return psnr(float(np.square(difference).mean(dtype=np.float64)) / HALF_RANGE**2)


@dataclass(frozen=True)
class LatentStatistics:
    """Per channel mean and deviation, one shift and scale for all, and the largest magnitude.

    z' = (z - shift) * scale has mean 0 and variance 1 over all channels together; `scale` is None
    where all latents are the same.
    """

    mean: list[float]
    std: list[float]
    shift: float
    scale: float | None
    largest: float


@torch.no_grad()
def latent_statistics(model: StupidAE, crops: Crops) -> LatentStatistics:
    """Figures of the latents of many crops, in float32."""
    pixels = POSITIONS * UNIT**2
    latents = (model.encode(images) for images in crops.samples(PURPOSE, pixels=pixels))
    parts = [latent.transpose(0, 1).flatten(1).double().cpu() for latent in latents]
    values = torch.cat(parts, dim=1)  # (C, N)
    spread = float(values.std())
    return LatentStatistics(
        mean=[round(value, 5) for value in values.mean(1).tolist()],
        std=[round(value, 5) for value in values.std(1).tolist()],
        shift=round(float(values.mean()), 5),
        scale=round(1 / spread, 5) if spread else None,
        largest=round(float(values.abs().max()), 3),
    )


def describe(
    settings: TrainSettings,
    photos: PhotoSet,
    loop: Loop,
    statistics: LatentStatistics,
    validation: Mapping[str, Any] | None,
) -> dict[str, str]:
    """Metadata, all strings: JSON where there is more than one figure."""
    about = {
        "stae_version": __version__,
        "recipe": settings.recipe.describe(),
        "training": _json(
            steps=loop.step,
            minutes=round(loop.clock.seconds / 60, 2),
            device=str(loop.crops.device),
            processes=loop.ranks.processes,
            torch=torch.__version__,
        ),
        "data": _json(
            sources=[source.name for source in settings.sources],
            photos=[len(source) for source in photos.sources],
            megapixels=round(photos.pixels / 1e6, 1),
        ),
        "latents": _json(**asdict(statistics), images=photos.photos),
    }
    if validation is not None:
        about["validation"] = _json(**validation)
    return about


def _json(**facts: Any) -> str:
    return json.dumps(facts, separators=(",", ":"))

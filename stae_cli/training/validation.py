"""Validation: the PSNR of whole photos that are not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from stae_cli.codec.pixel_codec import PixelCodec
from stae_cli.errors import InputError, StaeError
from stae_cli.images.buffers import Pixels
from stae_cli.images.read import open_image
from stae_cli.images.resize import Prep, prepare
from stae_cli.metrics import HALF_RANGE, mean_psnr, psnr
from stae_cli.network.stupid_ae import StupidAE
from stae_cli.storage.entry import Entry
from stae_cli.training.loop import DivergedError
from stae_cli.training.photos import PhotoSet, digest_of, list_photos


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

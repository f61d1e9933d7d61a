"""Crops: the batch of a step, drawn from the photos by seed and step alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stae_cli.training.photos import PhotoSet

SHORT_SIDE = 384  # crops are shrunk at most to what leaves the photo's short side at this
GREATEST_SHRINK = 4.0
SAMPLE_PIXELS = 1 << 18  # of a batch that is no step's
EACH_PIXEL = 8  # times at most that samples see a pixel, on average
DEVICE_SHARE = 0.5  # of an accelerator's free memory that photos may take

Draws = npt.NDArray[np.float64]  # (crops, 6): source, photo, shrink, top, left, turn


class Crops:
    """Random crops, shrunk, flipped and transposed.

    Every source has the same share of the crops; within it, photos have shares by their pixels.
    A crop is shrunk by a factor whose logarithm is uniform between 1 and what leaves the photo's
    short side at 384 pixels, 4 at most. What a step sees depends on the seed and its number only,
    so a run that is resumed, or shared by processes, meets the same crops.

    Args:
        photos: to draw from.
        crop: the side of crops in pixels.
        batch: crops of a step, over all processes.
        seed: of the draws.
        device: where batches go; photos are kept there too if they take half of it at most.
    """

    def __init__(
        self, photos: PhotoSet, *, crop: int, batch: int, seed: int, device: torch.device
    ) -> None:
        self.crop, self.count, self.seed, self.device = crop, batch, seed, device
        place = device if _fits(3 * photos.pixels, device) else torch.device("cpu")
        self._pixels = photos.pixels
        self._photos = [
            [torch.from_numpy(np.require(p, requirements=["C", "W"])).to(place) for p in source]
            for source in photos.sources
        ]
        self._shares = [np.cumsum([photo.numel() for photo in s]) for s in self._photos]

    def batch(self, step: int, *, rank: int = 0, processes: int = 1) -> Tensor:
        """One process's part of a step's batch, (b, 3, crop, crop) float32 in [-1, 1]."""
        draws = np.random.default_rng([self.seed, step]).random((self.count, 6))
        share = self.count // processes
        return self._crops(draws[rank * share : (rank + 1) * share])

    def samples(self, purpose: int, *, pixels: int) -> Iterator[Tensor]:
        """Batches that are no step's, of about so many pixels in all; fewer where photos are few.

        Args:
            purpose: tells apart the samples drawn for different ends.
            pixels: that the caller would like.
        """
        wanted = min(pixels, EACH_PIXEL * self._pixels)
        count = -(-wanted // self.crop**2)
        draws = np.random.default_rng([self.seed, purpose, 0]).random((count, 6))
        size = max(1, SAMPLE_PIXELS // self.crop**2)
        for first in range(0, count, size):
            yield self._crops(draws[first : first + size])

    def _crops(self, draws: Draws) -> Tensor:
        crops = [self._cut(one) for one in draws]
        return torch.stack(crops).to(self.device).float().div_(127.5).sub_(1)

    def _cut(self, draws: Draws) -> Tensor:
        """One crop, (3, crop, crop) uint8 where the photos are."""
        photo = self._photo(draws[0], draws[1])
        height, width = photo.shape[:2]
        side = _region(min(height, width), self.crop, draws[2])
        top, left = int(draws[3] * (height - side + 1)), int(draws[4] * (width - side + 1))
        cut = photo[top : top + side, left : left + side].permute(2, 0, 1)
        turn = int(draws[5] * 8)
        if turn & 1:
            cut = cut.transpose(1, 2)
        flipped = [dim for dim, bit in ((1, 2), (2, 4)) if turn & bit]
        if flipped:
            cut = cut.flip(flipped)
        return cut if side == self.crop else _shrunk(cut, self.crop)

    def _photo(self, source: float, photo: float) -> Tensor:
        index = int(source * len(self._photos))
        shares = self._shares[index]
        return self._photos[index][int(np.searchsorted(shares, photo * shares[-1], side="right"))]


def _region(short: int, crop: int, draw: float) -> int:
    """The side of what becomes a crop, in pixels of the photo."""
    greatest = min(max(short / max(SHORT_SIDE, crop), 1.0), GREATEST_SHRINK)
    return min(short, round(crop * greatest**draw))


def _shrunk(cut: Tensor, side: int) -> Tensor:
    """Antialiased; (3, s, s) uint8 -> (3, side, side) uint8."""
    values = cut[None] if cut.device.type == "cpu" else cut[None].float()  # only there in uint8
    small = interpolate(values, size=(side, side), mode="bilinear", antialias=True)
    return small[0] if small.dtype == torch.uint8 else small[0].round_().to(torch.uint8)


def _fits(size: int, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return size <= DEVICE_SHARE * free

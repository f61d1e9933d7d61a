"""The photos, decoded once and kept in memory as uint8; and the crops that are drawn from them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stae_cli.cores import usable_cores
from stae_cli.errors import InputError, StaeError
from stae_cli.flow.read_ahead import Reserve, read_ahead
from stae_cli.images.buffers import Pixels
from stae_cli.images.read import IMAGE_SUFFIXES, open_image
from stae_cli.storage.entry import Entry, Problem
from stae_cli.storage.sources import Listing, list_sources
from stae_cli.training.workspace import is_of_a_run

READ_AHEAD_BYTES = 256 << 20
SHORT_SIDE = 384  # crops are shrunk at most to what leaves the photo's short side at this
GREATEST_SHRINK = 4.0
SAMPLE_PIXELS = 1 << 18  # of a batch of samples
EACH_PIXEL = 8  # times that samples see a pixel, on average, at most
DEVICE_SHARE = 0.5  # of an accelerator's free memory that photos may take

Draws = npt.NDArray[np.float64]  # (crops, 6): source, photo, shrink, top, left, turn

_log = logging.getLogger(__name__)


@dataclass
class PhotoSet:
    """Photos of one or more sources, and what was skipped.

    `sources` holds the pixels (H, W, 3) of each source's photos; `small` counts photos with a
    side below the crop, `left_out` those that did not fit in memory; `digest` is of the names and
    pixels of all that are kept.
    """

    sources: list[list[Pixels]]
    problems: list[Problem] = field(default_factory=list)
    small: int = 0
    left_out: int = 0
    digest: str = ""

    @property
    def photos(self) -> int:
        """How many photos there are."""
        return sum(map(len, self.sources))

    @property
    def pixels(self) -> int:
        """How many pixels they have."""
        return sum(photo.size // 3 for photos in self.sources for photo in photos)


@dataclass(frozen=True)
class _Item:
    source: int
    entry: Entry


@dataclass(frozen=True)
class _Photo:
    pixels: Pixels
    digest: bytes


def load_photos(
    sources: Sequence[Path], *, crop: int, memory: int, seed: int = 0, workers: int | None = None
) -> PhotoSet:
    """Decodes all photos below the sources, in an order that depends on the seed alone.

    Args:
        sources: files or folders.
        crop: photos with a side below it are counted and skipped.
        memory: bytes of pixels to keep; the rest is skipped, from all sources alike.
        seed: shuffles the photos, so that those that fit are a fair sample.
        workers: reading threads.

    Raises:
        UsageError: a source does not exist.
        StaeError: no photo can be used.
    """
    found = PhotoSet([[] for _ in sources])
    items = _listed(sources, seed, found)
    held, digest = 0, hashlib.sha256()
    threads = workers or usable_cores()

    def read(item: _Item, reserve: Reserve) -> _Photo | Problem | None:
        return _read(item.entry, crop, reserve)

    ahead = read_ahead(items, read, threads=threads, max_bytes=READ_AHEAD_BYTES)
    with closing(ahead) as results:
        for number, (item, result) in enumerate(zip(items, results, strict=True)):
            if isinstance(result, Problem):
                found.problems.append(result)
                _log.info("skipped %s: %s", result.key, result.reason)
            elif result is None:
                found.small += 1
                _log.debug("skipped %s: smaller than the crop of %d", item.entry.key, crop)
            elif held + result.pixels.nbytes > memory:
                found.left_out = len(items) - number
                _log.info("skipped the last %d photos: memory is full", found.left_out)
                break
            else:
                found.sources[item.source].append(result.pixels)
                held += result.pixels.nbytes
                digest.update(f"{item.source}\0{item.entry.key}\0".encode(errors="replace"))
                digest.update(result.digest)
    found.digest = digest.hexdigest()
    _check(found, sources, crop)
    return found


def list_photos(source: Path) -> Listing:
    """The images in a file or folder, without the pictures that training runs drew.

    Raises:
        UsageError: it does not exist.
        StaeError: there are none.
    """
    listing = list_sources([source], None, suffixes=IMAGE_SUFFIXES)
    if source.is_dir():
        listing.entries = [entry for entry in listing.entries if not is_of_a_run(Path(entry.place))]
    if not (listing.entries or listing.problems):
        raise StaeError(
            f"no inputs found in `{source}` but pictures of training runs",
            "give a folder of photos",
        )
    return listing


def _listed(sources: Sequence[Path], seed: int, found: PhotoSet) -> list[_Item]:
    """Every source's entries shuffled, then one of each source in turn."""
    shuffled: list[list[_Item]] = []
    for index, source in enumerate(sources):
        listing = list_photos(source)
        found.problems += listing.problems
        order = np.random.default_rng([seed, index]).permutation(len(listing.entries))
        shuffled.append([_Item(index, listing.entries[at]) for at in order])
    turns: Iterator[_Item | None] = chain.from_iterable(zip_longest(*shuffled))
    return [item for item in turns if item is not None]


def _read(entry: Entry, crop: int, reserve: Reserve) -> _Photo | Problem | None:
    """Runs in a reading thread; None for a photo that is smaller than the crop."""
    try:
        with entry.open() as file:
            image = open_image(file, name=entry.key)
            if min(image.width, image.height) < crop:
                return None
            reserve(image.width * image.height * 3)
            pixels = image.pixels()
        return _Photo(pixels, digest_of(pixels))
    except InputError as error:
        return Problem(entry.key, error.message)
    except OSError as error:
        return Problem(entry.key, error.strerror or str(error))


def digest_of(pixels: Pixels) -> bytes:
    """A digest of the shape and pixels of a picture (H, W, 3)."""
    digest = hashlib.sha256(f"{pixels.shape}\n".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def _check(found: PhotoSet, sources: Sequence[Path], crop: int) -> None:
    for source, photos in zip(sources, found.sources, strict=True):
        if photos:
            continue
        reasons = [f"{found.small} smaller than the crop of {crop}"] * bool(found.small)
        reasons += [f"{len(found.problems)} damaged"] * bool(found.problems)
        reasons += [f"{found.left_out} beyond the memory"] * bool(found.left_out)
        raise StaeError(
            f"no photo in `{source}` can be used" + (f" ({', '.join(reasons)})" if reasons else ""),
            "give larger photos, a smaller `--crop`, or more `--memory`",
        )


class Crops:
    """Random crops, shrunk, flipped and transposed.

    Every source has the same share of the crops; within it, photos have shares by their pixels.
    A crop is shrunk by a factor between 1 and what leaves the photo's short side at 384 pixels, 4
    at most, with a uniform logarithm. The crops of a step depend on the seed and its number only,
    so that a run that is resumed, or shared by processes, sees the same ones.

    Args:
        photos: to draw from.
        crop: the side of crops in pixels.
        batch: crops of a step, over all processes.
        seed: of the draws.
        device: where batches go; photos are kept there too if they fit in half of its memory.
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
        """Batches apart from those of steps, of about `pixels` in all; fewer where photos are few.

        Args:
            purpose: a number; other purposes get other samples.
            pixels: the wanted number.
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
    """The side of the region that becomes a crop, in pixels of the photo."""
    greatest = min(max(short / max(SHORT_SIDE, crop), 1.0), GREATEST_SHRINK)
    return min(short, round(crop * greatest**draw))


def _shrunk(cut: Tensor, side: int) -> Tensor:
    """Antialiased; (3, s, s) uint8 -> (3, side, side) uint8."""
    on_cpu = cut.device.type == "cpu"  # which alone shrinks uint8
    values = cut[None] if on_cpu else cut[None].float()
    small = interpolate(values, size=(side, side), mode="bilinear", antialias=True)
    return small[0] if small.dtype == torch.uint8 else small[0].round_().to(torch.uint8)


def _fits(size: int, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return size <= DEVICE_SHARE * free

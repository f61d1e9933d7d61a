"""The photos: decoded once, kept in memory as uint8 for the whole run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np

from stae_cli.errors import InputError, StaeError
from stae_cli.flow.read_ahead import Reserve, read_ahead
from stae_cli.images.buffers import Pixels
from stae_cli.images.read import IMAGE_SUFFIXES, open_image
from stae_cli.storage.entry import Entry, Problem
from stae_cli.storage.sources import Listing, list_sources
from stae_cli.training.workspace import is_of_a_run

READ_AHEAD_BYTES = 256 << 20


@dataclass
class PhotoSet:
    """Photos of one or more sources, and what was left aside.

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
    sources: Sequence[Path],
    *,
    crop: int,
    memory: int,
    seed: int = 0,
    workers: int | None = None,
) -> PhotoSet:
    """Decodes all photos below the sources, in an order that depends on the seed alone.

    Args:
        sources: files or folders.
        crop: photos with a side below it are counted and left aside.
        memory: bytes of pixels to keep; what comes after is left out, from all sources alike.
        seed: shuffles the photos, so that those which fit are a fair sample.
        workers: reading threads.

    Raises:
        UsageError: a source does not exist.
        StaeError: there is no photo to train on.
    """
    found = PhotoSet([[] for _ in sources])
    items = _listed(sources, seed, found)
    held, digest = 0, hashlib.sha256()
    threads = workers or os.cpu_count() or 1

    def read(item: _Item, reserve: Reserve) -> _Photo | Problem | None:
        return _read(item.entry, crop, reserve)

    ahead = read_ahead(items, read, threads=threads, max_bytes=READ_AHEAD_BYTES)
    with closing(ahead) as results:
        for number, (item, result) in enumerate(zip(items, results, strict=True)):
            if isinstance(result, Problem):
                found.problems.append(result)
            elif result is None:
                found.small += 1
            elif held + result.pixels.nbytes > memory:
                found.left_out = len(items) - number
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
    """The images in a file or folder, without the pictures that runs left below it.

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
    """What tells one picture (H, W, 3) from all others."""
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

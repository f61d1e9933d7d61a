"""The data: pictures with captions in batches of mixed sizes, encoded before or on the fly."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import IterableDataset
from transformer import MERGE

from stae_cli import read_image, read_latent

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True)
class Example:
    """A file of pixels or of a latent, and the words that belong to it."""

    path: Path
    caption: str


def find_photos(folder: Path) -> list[Example]:
    """All images below a folder."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    return [Example(path, caption_of(path)) for path in found]


def find_latents(folder: Path) -> list[Example]:
    """What `stae encode PHOTOS LATENTS` wrote, with the captions that lay beside the photos."""
    found = sorted(folder.rglob("*.safetensors"))
    return [Example(path, read_latent(path)[1].caption or path.parent.name) for path in found]


def caption_of(photo: Path) -> str:
    """The text file beside a photo, or where there is none the name of its folder."""
    text = photo.with_suffix(".txt")
    return text.read_text(encoding="utf-8").strip() if text.exists() else photo.parent.name


def read_pixels(path: Path, short_side: int, token: int) -> Tensor:
    """(H, W, 3) uint8, scaled down, sides cropped to multiples of a token's pixels."""
    image = Image.fromarray(read_image(path))
    scale = min(1, short_side / min(image.size))
    width, height = (max(token, int(side * scale) // token * token) for side in image.size)
    return torch.tensor(np.asarray(ImageOps.fit(image, (width, height))))


def read_cached(path: Path, fingerprint: str) -> Tensor:
    """(C, h, w): a latent from the cache, which must come from the weights that will decode it."""
    latent, info = read_latent(path)
    if info.weights_sha256 != fingerprint:
        raise SystemExit(f"{path} was encoded with {info.weights}; pass it as --weights")
    return torch.from_numpy(latent).float()


class Batches(IterableDataset):
    """Endless batches of pictures of any sizes, in a new order each time around.

    Args:
        examples: what to read.
        read: a file to pixels (H, W, 3) or a latent (C, h, w).
        tokens: how many a batch has at most. It is filled with whatever comes next: there are no
            buckets of equal sizes.
        token: pixels on a side of one token.
    """

    def __init__(self, examples: list[Example], read, tokens: int, token: int) -> None:
        self.examples, self.read, self.tokens, self.token = examples, read, tokens, token

    def __iter__(self) -> Iterator[tuple[list[Tensor], list[str]]]:
        """Pictures and their captions."""
        pictures, captions, held = [], [], 0
        for picture, caption in self._endless():
            tokens = tokens_of(picture, self.token)
            if pictures and held + tokens > self.tokens:
                yield pictures, captions
                pictures, captions, held = [], [], 0
            pictures.append(picture)
            captions.append(caption)
            held += tokens

    def _endless(self) -> Iterator[tuple[Tensor, str]]:
        order = random.Random(torch.initial_seed())  # each worker of a DataLoader has its own
        while True:
            for example in order.sample(self.examples, len(self.examples)):
                yield self.read(example.path), example.caption


def tokens_of(picture: Tensor, token: int) -> int:
    """How many tokens pixels (H, W, 3) or a latent (C, h, w) become."""
    if picture.dtype == torch.uint8:
        return (picture.shape[0] // token) * (picture.shape[1] // token)
    return (picture.shape[1] // MERGE) * (picture.shape[2] // MERGE)

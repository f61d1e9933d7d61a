"""What each format of an export says of itself, and what several of them check."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from stae_cli.errors import StaeError
from stae_cli.export.samples import Samples

Normalize = Literal["none", "scalar", "channel"]

RELABEL = "encode with `--class-folders`, or with labels beside the images: see docs/encoding.md"


@dataclass(frozen=True)
class About:
    """What an export records of its latents, where a format has a place for it."""

    weights: str
    weights_sha256: str
    normalize: Normalize


class Format(ABC):
    """One way to write latents. `normalize` is what happens unless the user says otherwise.

    `statistics`: whether they are written beside the latents whatever happens.
    """

    normalize: ClassVar[Normalize] = "none"
    statistics: ClassVar[bool] = False

    @abstractmethod
    def check(self, samples: Samples, normalize: Normalize) -> None:
        """Checks that the format can hold the latents, normalised in this way.

        Raises:
            StaeError: it cannot.
        """

    @abstractmethod
    def write(self, samples: Samples, folder: Path, per_file: int, about: About) -> Iterator[int]:
        """Writes everything into an empty folder; yields how many latents have been written since.

        Raises:
            OSError: the folder cannot be written to.
            StaeError: a latent is damaged.
        """


def refuse_sizes(samples: Samples, what: str) -> None:
    """Raises StaeError if the latents have several sizes."""
    shapes = samples.shapes
    if len(shapes) > 1:
        (first, one), (second, other) = list(shapes.items())[:2]
        raise StaeError(
            f"{what} holds latents of one size: `{one}` is {_text(first)}, `{other}` "
            f"{_text(second)} (of {len(shapes)} sizes)",
            "encode with `--square N` or `--adm-crop N`, or export to webdataset or parquet",
        )


def refuse_unlabelled(samples: Samples, what: str) -> None:
    """Raises StaeError if a latent has no label."""
    if (key := samples.first(label=True)) is not None:
        raise StaeError(f"{what} needs a label for each latent, and `{key}` has none", RELABEL)


def refuse_without_flips(samples: Samples, what: str) -> None:
    """Raises StaeError if a latent has no flip."""
    if (key := samples.first(flip=True)) is not None:
        raise StaeError(
            f"{what} needs the latent of each mirrored picture, and `{key}` has none",
            "encode with `--flip`",
        )


def _text(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))

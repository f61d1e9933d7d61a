"""The plan of a decode run: which latents it reads, and the picture that each leads to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stae_cli.errors import StaeError, UsageError
from stae_cli.images.write import PictureFormat
from stae_cli.latents.format import LatentInfo, StoredLatent
from stae_cli.latents.listing import list_latents
from stae_cli.storage.destination import FolderDestination
from stae_cli.storage.entry import Problem
from stae_cli.storage.names import folded
from stae_cli.storage.remote_destination import local_folder

PART = 256  # latents that one of several processes decodes at a time


@dataclass(frozen=True)
class DecodeSettings:
    """How latents are decoded, and how results are kept."""

    format: PictureFormat = "png"
    overwrite: bool = False
    workers: int | None = None


@dataclass(frozen=True)
class Decodable:
    """One stored latent and the picture, relative to DEST, that it leads to."""

    stored: StoredLatent
    output: str


@dataclass(frozen=True)
class DecodePlan:
    """Everything that is known before the network is needed.

    `weights`, `weights_sha256` and `architecture` are what all the latents record; empty where
    none is readable.
    """

    outputs: Sequence[Decodable]
    problems: Sequence[Problem]
    passed_over: int
    weights: str
    weights_sha256: str
    architecture: str
    destination: FolderDestination
    settings: DecodeSettings

    @property
    def total(self) -> int:
        """How many inputs there are."""
        return len(self.outputs) + len(self.problems)

    def parts(self) -> Iterator[Sequence[Decodable]]:
        """The latents in pieces, for processes that share them."""
        for begin in range(0, len(self.outputs), PART):
            yield self.outputs[begin : begin + PART]


def plan_decode(
    sources: Sequence[Path | str], dest: Path | str, settings: DecodeSettings
) -> DecodePlan:
    """Finds the latents, reads their headers, names the pictures and prepares DEST.

    Raises:
        UsageError: a missing source, DEST inside a source or a file, colliding outputs.
        StaeError: no latents found, latents of several checkpoints, or an unwritable DEST.
    """
    destination = local_folder(dest)
    listing = list_latents(sources, dest)
    outputs = _named(listing.latents, settings.format)
    names: dict[str, LatentInfo] = {}
    for item in outputs:
        names.setdefault(item.stored.info.weights_sha256, item.stored.info)
    _refuse_several(names)
    made_with = _only(names)
    destination.prepare()
    return DecodePlan(
        outputs, listing.problems, listing.passed_over, *made_with, destination, settings
    )


def _named(latents: Sequence[StoredLatent], form: PictureFormat) -> list[Decodable]:
    """The picture of each latent; two of one name are refused."""
    first: dict[str, StoredLatent] = {}
    for stored in latents:
        other = first.setdefault(folded(stored.key), stored)
        if other is not stored:
            raise UsageError(
                f"`{other.file.place}` and `{stored.file.place}` would both write "
                f"`{stored.key}.{form}`",
                "decode them into different DESTs",
            )
    return [Decodable(stored, f"{stored.key}.{form}") for stored in latents]


def _only(names: dict[str, LatentInfo]) -> tuple[str, str, str]:
    for fingerprint, info in names.items():
        return info.weights, fingerprint, info.architecture
    return "", "", ""


def _refuse_several(names: dict[str, LatentInfo]) -> None:
    if len(names) > 1:
        listed = ", ".join(f"`{info.weights}` ({sha[:12]})" for sha, info in names.items())
        raise StaeError(
            f"the latents were made with {len(names)} different checkpoints: {listed}",
            "decode each checkpoint's latents by themselves",
        )

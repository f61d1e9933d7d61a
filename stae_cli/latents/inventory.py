"""An inventory of stored latents, from their headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stae_cli.latents.listing import StoredListing, list_latents


@dataclass
class Inventory(StoredListing):
    """What files and folders hold: sound latents, invalid files, and how many others."""

    def count(self, what: str) -> Counter[str]:
        """How many latents there are of each value of a field of `LatentInfo`."""
        return Counter(str(getattr(stored.info, what)) for stored in self.latents)

    @property
    def weights(self) -> Counter[tuple[str, str]]:
        """How many latents there are of each checkpoint, by name and fingerprint."""
        infos = (stored.info for stored in self.latents)
        return Counter((info.weights, info.weights_sha256) for info in infos)

    @property
    def sizes(self) -> Counter[tuple[int, int]]:
        """How many pictures there are of each width and height."""
        return Counter((stored.info.width, stored.info.height) for stored in self.latents)

    @property
    def files(self) -> dict[str, int]:
        """The bytes of each file that holds latents, by its place: several may share a key."""
        return {stored.file.place: stored.state.size for stored in self.latents}


def take_inventory(sources: Sequence[Path | str]) -> Inventory:
    """Reads the header of every latent file below the sources.

    Raises:
        UsageError: a source does not exist.
        StaeError: there is no file to look at.
    """
    found = list_latents(sources)
    return Inventory(found.latents, found.problems, found.passed_over)

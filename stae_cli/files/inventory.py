"""An inventory of latent files, from their headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stae_cli.errors import InputError
from stae_cli.files.latents import SUFFIX, LatentHeader, read_header
from stae_cli.files.sources import Problem, list_sources


@dataclass(frozen=True)
class Item:
    """One sound latent file."""

    key: str
    size: int  # bytes
    header: LatentHeader


@dataclass
class Inventory:
    """What files and folders hold: sound latents, invalid files, and how many others."""

    items: list[Item] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    passed_over: int = 0

    def count(self, what: str) -> Counter[str]:
        """How many latents there are of each value of a field of `LatentInfo`."""
        return Counter(str(getattr(item.header.info, what)) for item in self.items)

    @property
    def weights(self) -> Counter[tuple[str, str]]:
        """How many latents there are of each checkpoint, by name and fingerprint."""
        infos = (item.header.info for item in self.items)
        return Counter((info.weights, info.weights_sha256) for info in infos)

    @property
    def sizes(self) -> Counter[tuple[int, int]]:
        """How many pictures there are of each width and height."""
        return Counter((item.header.info.width, item.header.info.height) for item in self.items)


def take_inventory(sources: Sequence[Path]) -> Inventory:
    """Reads the header of every latent file below the sources.

    Raises:
        UsageError: a source does not exist.
        StaeError: there is no file to look at.
    """
    listing = list_sources(sources, None, suffixes=[SUFFIX])
    inventory = Inventory(problems=list(listing.problems), passed_over=listing.passed_over)
    for entry in listing.entries:
        try:
            header = read_header(entry.path)
            inventory.items.append(Item(entry.key, entry.path.stat().st_size, header))
        except InputError as error:
            inventory.problems.append(Problem(entry.key, error.message))
        except OSError as error:  # it vanished in between
            inventory.problems.append(Problem(entry.key, error.strerror or str(error)))
    return inventory

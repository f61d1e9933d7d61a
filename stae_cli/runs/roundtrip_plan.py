"""What is known of a roundtrip before the network is needed, and the tally of its run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stae_cli.errors import StaeError
from stae_cli.images.plugins import REMEDIES
from stae_cli.images.read import IMAGE_SUFFIXES
from stae_cli.images.resize import Prep
from stae_cli.metrics import Overall, Score, overall
from stae_cli.runs.tally import Tally
from stae_cli.storage.destination import Destination, FolderDestination
from stae_cli.storage.entry import Problem
from stae_cli.storage.names import EXACT, Planned, plan_outputs
from stae_cli.storage.remote_destination import local_folder
from stae_cli.storage.sources import list_sources

METRICS_NAME = "metrics.json"
PAGE_NAME = "index.html"
MARK = b'<meta name="generator" content="stae '  # of our pages
HEAD_BYTES = 4096


@dataclass(frozen=True)
class RoundtripSettings:
    """How images are prepared; `workers` threads read, and as many write."""

    prep: Prep
    workers: int | None = None


@dataclass(frozen=True)
class RoundtripPlan:
    """Everything that is known before the network is needed."""

    outputs: Sequence[Planned]
    problems: Sequence[Problem]
    passed_over: Counter[str]
    destination: Destination
    settings: RoundtripSettings

    @property
    def total(self) -> int:
        """How many inputs there are."""
        return len(self.outputs) + len(self.problems)


@dataclass(frozen=True)
class Scored:
    """One image's key, the size that was compared, and its score by each autoencoder."""

    key: str
    width: int
    height: int
    scores: Sequence[Score]


@dataclass
class RoundtripTally(Tally):
    """The tally of a run, with the figures of each image."""

    scored: list[Scored] = field(default_factory=list)

    def overall(self, index: int = 0) -> Overall | None:
        """Figures of one autoencoder over all images; None when there are none."""
        return overall([one.scores[index] for one in self.scored]) if self.scored else None


def plan_roundtrip(
    sources: Sequence[Path | str], dest: Path | str, settings: RoundtripSettings
) -> RoundtripPlan:
    """Finds the images, names their outputs by their whole keys, and prepares DEST.

    Raises:
        UsageError: a missing source, DEST inside a source or a file, colliding outputs.
        StaeError: no images found, DEST holds the page of another program, or cannot be written to.
    """
    destination = local_folder(dest)
    listing = list_sources(sources, dest, suffixes=IMAGE_SUFFIXES, remedies=REMEDIES)
    outputs = plan_outputs(listing.entries, "", keep_extension=True)
    _check_place(destination)
    destination.prepare()
    if (rules := destination.rules) != EXACT:
        outputs = plan_outputs(listing.entries, "", keep_extension=True, rules=rules)
    return RoundtripPlan(outputs, listing.problems, listing.passed_over, destination, settings)


def _check_place(destination: FolderDestination) -> None:
    """Checks that the page replaces no file of another program.

    Raises:
        StaeError: one is in its place.
    """
    try:
        with destination.path(PAGE_NAME).open("rb") as file:
            ours = MARK in file.read(HEAD_BYTES)
    except OSError:  # there is none
        return
    if not ours:
        raise StaeError(
            f"the report's place is taken: `{destination.place(PAGE_NAME)}` is not a page of stae",
            "move it, or give another folder",
        )

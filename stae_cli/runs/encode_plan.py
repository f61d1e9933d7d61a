"""The plan of an encode run: its inputs, outputs and units, and which units are this process's."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from stae_cli.images.plugins import REMEDIES
from stae_cli.images.read import IMAGE_SUFFIXES
from stae_cli.images.resize import Prep
from stae_cli.latents.format import SUFFIX
from stae_cli.runs.units import Layout, Unit, cut_units, shard_name
from stae_cli.storage.destination import Destination
from stae_cli.storage.entry import Problem
from stae_cli.storage.lists import SourceList
from stae_cli.storage.names import EXACT, Planned
from stae_cli.storage.remote_destination import destination_at
from stae_cli.storage.shares import Share
from stae_cli.storage.sources import list_sources


@dataclass(frozen=True)
class EncodeSettings:
    """How images are prepared, and how latents are stored.

    `shard_size` pictures share a file; 0 gives each its own. `share` is this process's part of the
    run. `strict` ends the run at the first failure. `workers` are threads.
    """

    prep: Prep
    save_dtype: Literal["float16", "float32"] = "float16"
    shard_size: int = 0
    keep_extension: bool = False
    overwrite: bool = False
    strict: bool = False
    workers: int | None = None
    share: Share = field(default_factory=Share)

    @property
    def layout(self) -> Layout:
        """How outputs are named."""
        return Layout(self.shard_size, self.keep_extension)


class KnownOutputs:
    """Whether an output is one of a run's; eight bytes for each, so that it can be pickled.

    Args:
        outputs: of all listed files.
        folders: those of the tars, whose outputs count as known.
    """

    def __init__(self, outputs: Iterable[str] = (), folders: Iterable[str] = ()) -> None:
        self._digests = array("Q", sorted(map(_digest, outputs)))
        self._starts = tuple(f"{folder}/" for folder in folders)

    def __contains__(self, output: str) -> bool:
        if output.startswith(self._starts):
            return True
        digest = _digest(output)
        index = bisect_left(self._digests, digest)
        return index < len(self._digests) and self._digests[index] == digest


def _digest(output: str) -> int:
    data = output.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


@dataclass(frozen=True)
class EncodePlan:
    """Everything that is known before the network is needed.

    `outputs` are those of all listed files; `units` are the whole run's, those of tars too.
    """

    outputs: Sequence[Planned]
    units: Sequence[Unit]
    tars: Sequence[str]  # the folders of their outputs
    problems: Sequence[Problem]
    passed_over: Counter[str]
    destination: Destination
    settings: EncodeSettings

    @property
    def total(self) -> int | None:
        """How many inputs this process has; None with tars, which are not listed yet."""
        share, size = self.settings.share, self.settings.layout.unit_size
        if self.tars:
            return None
        mine = [len(self.outputs[i * size : (i + 1) * size]) for i in self._mine()]
        return sum(mine) + (len(self.problems) if share.rank == 0 else 0)

    def my_units(self) -> list[Unit]:
        """The units of this process."""
        return [self.units[index] for index in self._mine()]

    def known(self) -> KnownOutputs:
        """The outputs of the whole run; empty without shards, which need it."""
        if not self.settings.shard_size:
            return KnownOutputs()
        return KnownOutputs((planned.output for planned in self.outputs), self.tars)

    def makes(self, name: str) -> bool:
        """Whether DEST's file of this name is, or may be, an output of the run."""
        if name.endswith(SUFFIX) and any(name.startswith(f"{folder}/") for folder in self.tars):
            return True
        if not self.settings.shard_size:
            return name in self._listed
        return name in {shard_name("", number) for number in range(self.listed_shards)}

    @property
    def listed_shards(self) -> int:
        """How many shards the listed files make."""
        return -(-len(self.outputs) // self.settings.shard_size)

    @cached_property
    def _listed(self) -> frozenset[str]:
        """Made only when needed: it may hold a million names."""
        return frozenset(planned.output for planned in self.outputs)

    def _mine(self) -> list[int]:
        return [i for i in range(len(self.units)) if self.settings.share.takes(i)]


def plan_encode(
    sources: Sequence[Path | str],
    dest: Path | str,
    settings: EncodeSettings,
    *,
    listed: SourceList | None = None,
) -> EncodePlan:
    """Finds the images, names their outputs, cuts the run into units and prepares DEST.

    Args:
        sources: files, folders, tars or URLs of either.
        dest: a folder or a URL.
        settings: of the run.
        listed: more files.

    Raises:
        UsageError: a missing source, DEST inside a source or a file, colliding outputs.
        StaeError: no images found, or DEST cannot be written to.
    """
    destination = destination_at(dest)
    listing = list_sources(
        sources,
        dest,
        suffixes=IMAGE_SUFFIXES,
        with_tars=True,
        listed=listed,
        remedies=REMEDIES,
    )
    outputs, units = cut_units(listing, settings.layout)  # so that a refusal leaves no DEST
    destination.prepare()
    if (rules := destination.rules) != EXACT:
        outputs, units = cut_units(listing, settings.layout, rules)
    return EncodePlan(
        outputs,
        units,
        [tar.prefix for tar in listing.tars],
        listing.problems,
        listing.passed_over,
        destination,
        settings,
    )

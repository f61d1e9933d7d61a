"""The plan of an encode run: its inputs, outputs and units, and which units are this process's."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal

from stae_cli.images.plugins import REMEDIES
from stae_cli.images.read import IMAGE_SUFFIXES
from stae_cli.images.resize import Prep
from stae_cli.latents.format import SUFFIX
from stae_cli.latents.orphans import read_gaps
from stae_cli.latents.parts import Part
from stae_cli.latents.writer import Compare
from stae_cli.runs.present import Present, look_into, roots_of
from stae_cli.runs.units import (
    Layout,
    Unit,
    digest_of,
    listed_units,
    name_outputs,
    shard_number,
    tar_units,
)
from stae_cli.storage.archives import REMEDIES as ARCHIVE_REMEDIES
from stae_cli.storage.archives import SUFFIXES
from stae_cli.storage.destination import Destination
from stae_cli.storage.entry import Problem
from stae_cli.storage.fsspec_store import is_url
from stae_cli.storage.lists import SourceList
from stae_cli.storage.names import EXACT, Planned
from stae_cli.storage.remote_destination import destination_at
from stae_cli.storage.shares import Share
from stae_cli.storage.sources import list_sources


@dataclass(frozen=True)
class EncodeSettings:
    """How images are prepared, and how latents are stored.

    `shard_size` pictures share a file; 0 gives each its own. `share` is this process's part of the
    run. `prune` removes latents whose sources are gone. `compare` and `check` say which latents
    need not be made again: see `Expected`. `strict` ends the run at the first failure. `captions`:
    captions and labels are read; with `class_folders`, folders give the labels. `image_column` is
    that of Parquet files, by default the only one. `workers` are threads.
    """

    prep: Prep
    save_dtype: Literal["float16", "float32"] = "float16"
    shard_size: int = 0
    keep_extension: bool = False
    overwrite: bool = False
    prune: bool = False
    compare: Compare = "time"
    check: bool = False
    strict: bool = False
    captions: bool = True
    class_folders: bool = False
    image_column: str = ""
    workers: int | None = None
    share: Share = field(default_factory=Share)

    @property
    def layout(self) -> Layout:
        """How outputs are named."""
        return Layout(self.shard_size, self.keep_extension, self.captions)


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
    present: Present
    roots: frozenset[str]  # what identifies those of the sources
    whole: bool  # all sources are folders, which were listed to their end

    @property
    def total(self) -> int | None:
        """How many inputs this process has; None with tars, which are not listed yet."""
        counts = [unit.count for unit in self.my_units() if unit.count is not None]
        problems = len(self.problems) if self.settings.share.rank == 0 else 0
        return None if self.tars else sum(counts) + problems

    def concerns(self, key: str) -> bool:
        """Whether an input with this key was the run's to read: anything in whole folders."""
        starts = (folder for folder in self.tars if key.startswith(folder))
        below = (
            key[len(folder) :].startswith("/") or key[len(folder) :].lower() in SUFFIXES
            for folder in starts
        )
        return self.whole or key in self._keys or any(below)

    def my_units(self) -> list[Unit]:
        """The units of this process."""
        return [unit for i, unit in enumerate(self.units) if self.settings.share.takes(i)]

    def part(self) -> Part:
        """The part of this process, not yet begun."""
        share = self.settings.share
        units = digest_of(self.units) if share.count > 1 else ""
        return Part(self.destination, share, units, len(self.outputs) + len(self.tars))

    def known(self) -> KnownOutputs:
        """The outputs of the whole run, and orphans; empty without shards, which need it."""
        if not self.settings.shard_size:
            return KnownOutputs()
        orphans = (orphan.key for orphan in self.present.orphans)
        outputs = (planned.output for planned in self.outputs)
        return KnownOutputs(chain(outputs, orphans), self.tars)

    def makes(self, name: str) -> bool:
        """Whether DEST's file of this name is, or may be, an output of the run."""
        if name.endswith(SUFFIX) and any(name.startswith(f"{folder}/") for folder in self.tars):
            return True
        if not self.settings.shard_size:
            return name in self._listed
        number = shard_number(name)
        return number is not None and number < self.listed_shards

    @property
    def listed_shards(self) -> int:
        """How many shards there are room for: those of the listed files, and of orphans."""
        numbers = [unit.first_shard for unit in self.units if unit.count is not None]
        orphaned = (shard_number(orphan.file) for orphan in self.present.orphans)
        return max((*numbers, *(n for n in orphaned if n is not None)), default=-1) + 1

    @cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset(planned.entry.key for planned in self.outputs)

    @cached_property
    def _listed(self) -> frozenset[str]:
        """Made only when needed: it may hold a million names."""
        return frozenset(planned.output for planned in self.outputs)


def plan_encode(
    sources: Sequence[Path | str],
    dest: Path | str,
    settings: EncodeSettings,
    *,
    listed: SourceList | None = None,
) -> EncodePlan:
    """Finds the images, names their outputs, cuts the run into units and prepares DEST.

    Args:
        sources: files, folders, tars, Parquet files or URLs of any.
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
        image_column=settings.image_column,
        listed=listed,
        remedies=REMEDIES | ARCHIVE_REMEDIES,
        notes=settings.captions,
        class_folders=settings.class_folders,
    )
    layout, shards = settings.layout, settings.shard_size > 0
    outputs = name_outputs(listing, layout)  # so that a refusal leaves no DEST
    destination.prepare()
    if (rules := destination.rules) != EXACT:
        outputs = name_outputs(listing, layout, rules)
    present = look_into(
        destination,
        listing,
        outputs,
        shards=shards,
        overwrite=settings.overwrite,
        workers=settings.workers,
    )
    gaps = read_gaps(destination) if shards and not settings.overwrite else {}
    units = listed_units(outputs, layout, gaps=gaps, orphans=present.in_shards())
    return EncodePlan(
        outputs,
        units + tar_units(listing.tars, layout, rules),
        [tar.prefix for tar in listing.tars],
        listing.problems,
        listing.passed_over,
        destination,
        settings,
        present,
        roots_of(listing),
        listed is None and all(is_url(source) or Path(source).is_dir() for source in sources),
    )

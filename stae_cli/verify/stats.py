"""The figures of `stae stats`: moments of stored latents, in constant memory."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stae_cli.errors import InputError, StaeError
from stae_cli.flow.read_ahead import Reserve, scanning
from stae_cli.latents.format import SUFFIX, DamagedDataError, StoredLatent, is_finite
from stae_cli.latents.info import LatentInfo
from stae_cli.latents.listing import stored_in
from stae_cli.latents.moments import Moments, Statistics, moments_of, statistics_of
from stae_cli.runs.tally import problem_or
from stae_cli.storage.entry import Entry, Problem
from stae_cli.storage.remote_entry import on_this_machine
from stae_cli.storage.sources import list_sources


@dataclass
class Surveyed:
    """Statistics of the latents in some folders.

    `weights` and `weights_sha256` are those that made all of them; `repeated` counts the latents
    whose key came before, with the same or other values.
    """

    latents: int = 0
    repeated: int = 0
    files: int = 0
    weights: str = ""
    weights_sha256: str = ""
    problems: list[Problem] = field(default_factory=list)
    statistics: Statistics | None = None


@dataclass(frozen=True)
class _File:
    """The moments of a file's latents; `place` and `info` are those of the first."""

    place: str = ""
    info: LatentInfo | None = None
    moments: Moments | None = None
    keys: Sequence[str] = ()
    latents: int = 0
    problems: Sequence[Problem] = ()


def survey(
    sources: Sequence[Path | str], *, workers: int | None = None, advance: Callable[[int], None]
) -> Surveyed:
    """Reads every latent in files, folders and URLs once.

    Damaged latents, and those with NaN or infinity, are listed and left out.

    Args:
        sources: latent files, or folders of them.
        workers: reading threads.
        advance: called with the number of latents that were read.

    Raises:
        UsageError: a source does not exist.
        StaeError: there are no valid latents, or latents of several checkpoints.
    """
    listing = list_sources(sources, None, suffixes=[SUFFIX], hidden=True)
    found, whole = Surveyed(problems=list(listing.problems)), None
    place, info = "", None  # of the first latent
    keys = array("q")  # hashes, since there may be many millions
    with scanning(listing.entries, _read, workers=workers) as files:
        for file in files:
            found.problems += file.problems
            if file.info is None:
                continue
            if info is None:
                place, info = file.place, file.info
            refuse_several(place, info, file.place, file.info)
            found.files += 1
            found.latents += file.latents
            keys.extend(map(hash, file.keys))
            if file.moments is not None:
                whole = file.moments if whole is None else whole + file.moments
            advance(file.latents)
    if whole is None or info is None or whole.count < 2:
        first = "; ".join(f"`{p.key}`: {p.reason}" for p in found.problems[:1])
        raise StaeError(
            f"there are too few valid latents for statistics{first and f' ({first})'}",
            "`stae verify` reports what is wrong with a folder of latents",
        )
    found.weights, found.weights_sha256 = info.weights, info.weights_sha256
    found.repeated = len(keys) - len(np.unique(np.frombuffer(keys, np.int64)))
    found.statistics = statistics_of(whole)
    return found


def _read(entry: Entry, reserve: Reserve) -> _File:
    """Runs in a reading thread."""
    result = problem_or(entry.key, lambda: _moments_in(entry, reserve))
    return _File(problems=[result]) if isinstance(result, Problem) else result


def _moments_in(entry: Entry, reserve: Reserve) -> _File:
    here = on_this_machine(entry)
    stored = stored_in(here)
    place, info = place_of(stored[0]), stored[0].info
    for latent in stored:
        refuse_several(place, info, place_of(latent), latent.info)
    reserve(max(latent.size for latent in stored))
    whole, problems = None, []
    with here.open() as file:
        for latent in stored:
            try:
                values = latent.read_from(file)
            except DamagedDataError as error:  # the others may be good
                problems.append(Problem(latent.label, error.message))
                continue
            if is_finite(values):
                moments = moments_of(values)
                whole = moments if whole is None else whole + moments
            else:
                problems.append(Problem(latent.label, "it holds NaN or infinity"))
    keys = [latent.key for latent in stored]
    return _File(place, info, whole, keys, len(stored) - len(problems), problems)


def refuse_several(place: str, info: LatentInfo, other: str, theirs: LatentInfo) -> None:
    """Checks that two latents, each with its location, are of one network.

    Raises:
        StaeError: they are of two checkpoints.
        InputError: they have different numbers of channels.
    """
    if info.weights_sha256 != theirs.weights_sha256:
        raise StaeError(
            f"`{place}` was made with `{info.weights}` ({info.weights_sha256[:12]}), "
            f"`{other}` with `{theirs.weights}` ({theirs.weights_sha256[:12]})",
            "take each checkpoint's latents separately",
        )
    if info.latent_channels != theirs.latent_channels:
        raise InputError(
            f"`{other}` has {theirs.latent_channels} channels, `{place}` {info.latent_channels}",
            "`stae verify` reports which of them is damaged",
        )


def place_of(stored: StoredLatent) -> str:
    """The location of a latent: several sources may share keys."""
    return stored.file.place if stored.is_alone else f"{stored.file.place}:{stored.key}"

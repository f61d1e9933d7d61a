"""Finding and reading stored latents, in files of their own or in shards."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from stae_cli.errors import InputError, UsageError
from stae_cli.latents.format import SUFFIX, Latent, StoredLatent, parse_latent
from stae_cli.latents.info import LatentInfo
from stae_cli.latents.safetensors_header import read_tensors
from stae_cli.latents.shard_format import FORMAT as SHARD
from stae_cli.latents.shard_format import HEADER_LIMIT, parse_shard
from stae_cli.storage.entry import Entry, FileEntry, Problem
from stae_cli.storage.remote_entry import RemoteEntry
from stae_cli.storage.sources import list_sources

Found = TypeVar("Found")

REQUESTS = 16  # in parallel, for headers on a store


@dataclass
class LatentListing:
    """What the sources hold: latents in a stable order, invalid files, and how many others."""

    latents: list[StoredLatent] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)

    def count(self, what: str) -> Counter[str]:
        """How many latents have each value of a field of `LatentInfo`."""
        return Counter(str(getattr(stored.info, what)) for stored in self.latents)

    @property
    def weights(self) -> Counter[tuple[str, str]]:
        """How many latents each checkpoint made, by name and fingerprint."""
        infos = (stored.info for stored in self.latents)
        return Counter((info.weights, info.weights_sha256) for info in infos)

    @property
    def sizes(self) -> Counter[tuple[int, int]]:
        """How many pictures have each width and height."""
        return Counter((stored.info.width, stored.info.height) for stored in self.latents)

    @property
    def files(self) -> dict[str, int]:
        """The bytes of each file of latents, by its location: several may share a key."""
        return {stored.file.place: stored.state.size for stored in self.latents}


def list_latents(sources: Sequence[Path | str], dest: Path | str | None = None) -> LatentListing:
    """Reads the headers of all latent files and shards below the sources.

    A key may come twice, from two sources, or from a shard and a file: callers refuse that if they
    must.

    Raises:
        UsageError: a source does not exist, or DEST is inside one.
        StaeError: there are no files, or a store cannot be reached.
    """
    listing = list_sources(sources, dest, suffixes=[SUFFIX], hidden=True)
    found = LatentListing(problems=list(listing.problems), passed_over=listing.passed_over)
    for result in looked_into(listing.entries, _latents_or_problem):
        if isinstance(result, Problem):
            found.problems.append(result)
        else:
            found.latents += result
    return found


def looked_into(entries: Sequence[Entry], look: Callable[[Entry], Found]) -> Iterable[Found]:
    """What `look` finds in the header of each file, in order; on stores, many at once."""
    if not any(isinstance(entry, RemoteEntry) for entry in entries):
        return map(look, entries)
    with ThreadPoolExecutor(REQUESTS, thread_name_prefix="headers") as pool:
        return list(pool.map(look, entries))


def _latents_or_problem(entry: Entry) -> list[StoredLatent] | Problem:
    try:
        return stored_in(in_parts(entry))
    except InputError as error:
        return Problem(entry.key, error.message)


def in_parts(entry: Entry) -> Entry:
    """The same file, so that reading its header fetches no more than that."""
    return entry.in_parts() if isinstance(entry, RemoteEntry) else entry


def stored_in(entry: Entry) -> list[StoredLatent]:
    """The latents of one file, from its header alone.

    Raises:
        ForeignFileError: a safetensors file that is not a latent of ours.
        InputError: absent, unreadable, truncated or damaged.
    """
    try:
        state = entry.state()
        with entry.open() as file:
            tensors, metadata, data = read_tensors(file, state.size, limit=HEADER_LIMIT)
    except OSError as error:
        raise InputError(f"cannot read it: {error.strerror or error}") from error
    if metadata.get("format") == SHARD:
        return parse_shard(tensors, metadata, data, file=entry, state=state)
    return [parse_latent(tensors, metadata, data, file=entry, state=state)]


def read_latent(path: os.PathLike[str] | str, key: str | None = None) -> tuple[Latent, LatentInfo]:
    """Reads one latent that `stae encode` wrote, and what is recorded of it.

    Each call reads the header of the whole file; `LatentDataset` reads it once, for many latents.

        latent, info = read_latent("latents/cat.safetensors")
        latent, info = read_latent("shards/shard-00000.safetensors", "photos/cat")
        info.width, info.height  # of the picture in pixels; info.weights_sha256, info.source, ...

    Args:
        path: a latent file, or a shard.
        key: which latent of a shard: the path of its picture below SOURCE, without the suffix.

    Returns:
        The latent, (C, h, w) float16 or float32 as it is stored, neither shifted nor scaled; and
        a `LatentInfo`.

    Raises:
        UsageError: a shard without a key, or a key for a file of one latent.
        InputError: the file is absent, damaged (its data are compared with their checksum), or not
            a latent of ours; or the shard has no such key.
    """
    file = FileEntry(Path(path).name, os.fspath(path))
    try:
        latents = stored_in(file)
        found = _chosen(latents, key)
        return found.read(), found.info
    except OSError as error:
        raise InputError(f"`{file.place}`: cannot read it: {error.strerror or error}") from error
    except InputError as error:
        raise type(error)(f"`{file.place}`: {error.message}", error.hint) from error


def _chosen(latents: Sequence[StoredLatent], key: str | None) -> StoredLatent:
    first = latents[0]
    if first.is_alone:
        if key is not None:
            raise UsageError(f"`{first.file.place}` holds one latent", "omit the key")
        return first
    if key is None:
        raise UsageError(
            f"`{first.file.place}` is a shard of {len(latents)} latents",
            f"give the key of one of them, such as `{first.key}`",
        )
    for latent in latents:
        if latent.key == key:
            return latent
    raise InputError(f"it holds no latent `{key}`, but {len(latents)} others")

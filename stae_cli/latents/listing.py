"""Stored latents: every latent below the sources, each in a file of its own or in a shard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from stae_cli.errors import InputError
from stae_cli.latents.format import SUFFIX, Latent, LatentInfo, check_data, latent_of, parse_latent
from stae_cli.latents.safetensors_header import Shape, TensorPlace, read_tensors
from stae_cli.latents.shard_format import FORMAT as SHARD
from stae_cli.latents.shard_format import HEADER_LIMIT, parse_shard
from stae_cli.storage.entry import Entry, Problem, SourceState
from stae_cli.storage.remote_entry import RemoteEntry
from stae_cli.storage.sources import list_sources

REQUESTS = 16  # at once, where headers lie on a store


@dataclass(frozen=True, slots=True)
class StoredLatent:
    """One latent that is on disk, as its header describes it.

    `key` is a path with `/`: that of its file without the suffix, or its name in a shard. `file`
    holds its data from `begin` on, and was in `state` when the header was read; `is_alone` says
    whether it is the latent's own, and no shard.
    """

    key: str
    info: LatentInfo
    shape: Shape
    dtype: str
    file: Entry
    state: SourceState
    begin: int
    is_alone: bool

    @property
    def label(self) -> str:
        """How failures name it: its file, and its key in a shard."""
        return self.file.key if self.is_alone else f"{self.file.key}:{self.key}"

    @property
    def size(self) -> int:
        """Bytes of its data."""
        return TensorPlace(self.shape, self.dtype, self.begin).size

    def read(self) -> Latent:
        """The latent (C, h, w).

        Raises:
            InputError: the file has changed since its header was read, or its data are damaged.
            OSError: it cannot be read.
        """
        with self.file.open() as file:
            return self.read_from(file)

    def read_from(self, file: BinaryIO) -> Latent:
        """The latent out of its file, opened already; raises what `read` raises."""
        file.seek(self.begin)
        data = file.read(self.size)
        if self.file.state() != self.state or len(data) != self.size:
            raise InputError("it changed while it was read")
        check_data(data, self.info)
        return latent_of(data, self.shape, self.dtype)


@dataclass
class StoredListing:
    """What the sources hold: latents in a stable order, files that are none, and the others."""

    latents: list[StoredLatent] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    passed_over: int = 0


def list_latents(sources: Sequence[Path | str], dest: Path | str | None = None) -> StoredListing:
    """Reads the headers of all latent files and shards below the sources.

    A key may come twice, from two sources or from a shard beside a file: callers that cannot have
    that refuse it.

    Raises:
        UsageError: a source does not exist, or DEST lies inside one.
        StaeError: there is no file to look at, or a store cannot be reached.
    """
    listing = list_sources(sources, dest, suffixes=[SUFFIX], hidden=True)
    found = StoredListing(problems=list(listing.problems), passed_over=listing.passed_over)
    for result in _looked_into(listing.entries):
        if isinstance(result, Problem):
            found.problems.append(result)
        else:
            found.latents += result
    return found


def _looked_into(entries: Sequence[Entry]) -> Iterable[list[StoredLatent] | Problem]:
    """The latents of each file, in order; stores are asked for many at once."""
    if not any(isinstance(entry, RemoteEntry) for entry in entries):
        return map(_latents_or_problem, entries)
    with ThreadPoolExecutor(REQUESTS, thread_name_prefix="headers") as pool:
        return list(pool.map(_latents_or_problem, entries))


def _latents_or_problem(entry: Entry) -> list[StoredLatent] | Problem:
    try:
        return stored_in(entry.in_parts() if isinstance(entry, RemoteEntry) else entry)
    except InputError as error:
        return Problem(entry.key, error.message)


def stored_in(entry: Entry) -> list[StoredLatent]:
    """The latents of one file, from its header alone.

    Raises:
        ForeignFileError: a safetensors file that is no latent of ours.
        InputError: absent, unreadable, truncated or damaged.
    """
    try:
        state = entry.state()
        with entry.open() as file:
            tensors, metadata, data = read_tensors(file, state.size, limit=HEADER_LIMIT)
    except OSError as error:
        raise InputError(f"cannot read it: {error.strerror or error}") from error
    data_size = state.size - data
    if metadata.get("format") == SHARD:
        members = parse_shard(tensors, metadata, data_size=data_size)
        return [
            StoredLatent(m.key, m.info, m.shape, m.dtype, entry, state, data + m.begin, False)
            for m in members
        ]
    header, place = parse_latent(tensors, metadata, data_size=data_size)
    key = entry.key[: -len(SUFFIX)] if entry.key.lower().endswith(SUFFIX) else entry.key
    return [StoredLatent(key, header.info, place.shape, place.dtype, entry, state, data, True)]

"""Findings: what a check can find wrong, and what it finds in each file, read to its last byte."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

from stae_cli.errors import InputError
from stae_cli.flow.read_ahead import Reserve
from stae_cli.latents.format import DamagedDataError, StoredLatent, is_finite
from stae_cli.latents.listing import stored_in
from stae_cli.latents.run_record import FILES, SHARDS, RunRecord
from stae_cli.latents.safetensors_header import ForeignFileError
from stae_cli.storage.entry import Entry, Problem, SourceState
from stae_cli.storage.names import output_name
from stae_cli.storage.remote_entry import on_this_machine

Kind = Literal[
    "record",  # the run record is absent or damaged
    "damaged",  # truncated, malformed, or not finite
    "foreign",  # another program's file, or a later format
    "mixed",  # made with other weights or settings than the rest
    "misnamed",  # its name is not that of the source that it records
    "duplicate",  # its key or its source exists twice
    "missing",  # a source without an output
    "stale",  # the source has changed since
    "orphaned",  # an output without a source
    "unreadable",  # a source that cannot be reached
    "failed",  # the last run listed it as a failure
    "temporary",  # a file left by a run that was killed
    "differs",  # encoding again gives another latent
    "part",  # a process of a shared run did not finish its part
    "manifest",  # it is absent, or does not match the shards
]


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem of a file, a latent (`FILE:KEY` in shards) or a source."""

    kind: Kind
    key: str
    reason: str


class MadeWith(NamedTuple):
    """What all latents of a DEST have in common."""

    weights: str
    weights_sha256: str
    prep: str
    dtype: str
    layout: str
    compute_dtype: str
    architecture: str


_made_with = lru_cache(maxsize=64)(MadeWith)  # one object for all latents with the same settings


@dataclass(frozen=True, slots=True)
class CheckedLatent:
    """What a check keeps of each stored latent, since a DEST may hold many millions.

    It takes 430 bytes, a `StoredLatent` 900.
    """

    key: str
    file: Entry
    source: str
    state: SourceState
    content: str  # the hash of the source's bytes, if it is recorded
    made_with: MadeWith

    @property
    def label(self) -> str:
        """Its name in findings: its file, and its key in a shard."""
        return self.file.key if self.made_with.layout == FILES else f"{self.file.key}:{self.key}"

    @property
    def is_named_after_its_source(self) -> bool:
        """Whether its key is what `encode` derives from the recorded source."""
        return self.key in (self.source, output_name(self.source, "", None, False))


@dataclass
class CheckedFile:
    """What a file holds, and the problems of the file or of latents in it."""

    entry: Entry
    size: int = 0
    latents: list[CheckedLatent] = field(default_factory=list)
    problem: Problem | None = None
    is_foreign: bool = False
    unsound: list[Problem] = field(default_factory=list)


def check_file(entry: Entry, reserve: Reserve) -> CheckedFile:
    """Reads a whole file of latents: header, sizes, checksums, and whether all values are finite.

    Args:
        entry: the file.
        reserve: called with the bytes of its largest latent before reading any.
    """
    checked = CheckedFile(entry)
    try:
        here = on_this_machine(entry)
        latents = stored_in(here)
        checked.size = latents[0].state.size if latents else 0
        checked.latents = [_checked(stored, entry) for stored in latents]
        reserve(max((stored.whole_size for stored in latents), default=0))
        with here.open() as file:
            for stored in latents:
                try:
                    if not all(map(is_finite, stored.read_both_from(file))):
                        checked.unsound.append(Problem(stored.label, "it holds NaN or infinity"))
                except DamagedDataError as error:  # the others may be good
                    checked.unsound.append(Problem(stored.label, error.message))
    except InputError as error:
        checked.problem = Problem(entry.key, error.message)
        checked.is_foreign = isinstance(error, ForeignFileError)
    except OSError as error:
        checked.problem = Problem(entry.key, f"cannot read it: {error.strerror or error}")
    return checked


def _checked(stored: StoredLatent, file: Entry) -> CheckedLatent:
    info = stored.info
    made_with = _made_with(
        info.weights,
        info.weights_sha256,
        info.prep,
        stored.dtype,
        FILES if stored.is_alone else SHARDS,
        info.compute_dtype,
        f"{info.architecture}, {info.latent_channels} channels, 1/{info.downsample}",
    )
    return CheckedLatent(
        stored.key, file, info.source, info.source_state, info.source_xxh3, made_with
    )


def as_recorded(usual: MadeWith, record: RunRecord | None) -> MadeWith:
    """The most common settings, with those of the run record instead where it has them."""
    if record is None:
        return usual
    said = (record.weights, record.weights_sha256, record.prep, record.output, record.layout)
    compute_dtype = record.compute_dtype or usual.compute_dtype
    return MadeWith._make([*map(str, said), compute_dtype, usual.architecture])


def differences(made_with: MadeWith, usual: MadeWith, than: str) -> str:
    """What differs, as `name mine, THAN theirs`; weights are compared by fingerprint."""
    mine, theirs = made_with._asdict(), usual._asdict()
    return "; ".join(
        f"{name.removesuffix('_sha256')} {mine[name][:12]}, {than} {theirs[name][:12]}"
        if name == "weights_sha256"
        else f"{name} {mine[name]}, {than} {theirs[name]}"
        for name in mine
        if name != "weights" and mine[name] != theirs[name]
    )

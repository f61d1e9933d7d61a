"""Storing latents in DEST, each in a file of its own; `shard_writer` stores them in shards."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Literal

from stae_cli.errors import InputError, StaeError
from stae_cli.flow.write_behind import WriteBehind
from stae_cli.latents.format import DamagedDataError, Latent, StoredLatent, is_finite, write_latent
from stae_cli.latents.info import LatentInfo
from stae_cli.latents.listing import stored_in
from stae_cli.latents.safetensors_header import ForeignFileError
from stae_cli.latents.shard_format import TarNote
from stae_cli.storage.destination import Destination
from stae_cli.storage.entry import Entry, SourceState, content_hash, root_id
from stae_cli.storage.names import Planned

_log = logging.getLogger(__name__)

ABSENT = (FileNotFoundError, NotADirectoryError)
Compare = Literal["time", "content"]


@dataclass(frozen=True)
class Written:
    """What one write put on disk."""

    outputs: int
    size: int  # bytes


@dataclass(frozen=True)
class Expected:
    """What must be recorded of a latent for this run to keep it.

    `compare` says how a source is compared with what is recorded of it: by size and `time`, or by
    `content`. With `check`, a latent's data must be sound too. `moved`: the sources are those of
    DEST in another place.
    """

    weights_sha256: str
    prep: str
    dtype: Literal["float16", "float32"]
    compute_dtype: str
    compare: Compare = "time"
    check: bool = False
    moved: bool = False

    def matches(self, stored: StoredLatent) -> bool:
        """Whether a stored latent was made with these settings."""
        info = stored.info
        return (
            info.weights_sha256 == self.weights_sha256
            and info.prep == self.prep
            and stored.dtype == self.dtype
            and info.compute_dtype == self.compute_dtype
        )

    def made(self, stored: StoredLatent, planned: Planned, state: SourceState) -> bool:
        """Whether a stored latent was made from this source with these settings.

        Raises:
            InputError: it was made from another file of this name, and must not be replaced.
            OSError: the source cannot be read.
        """
        info, entry = stored.info, planned.entry
        key = entry.key
        if not self.matches(stored):
            _log.info("encoding %s again: its latent has other weights or settings", key)
            return False
        elsewhere = not self.moved and is_elsewhere(info, entry)
        if info.source == key and self._is_unchanged(info, entry, state, elsewhere=elsewhere):
            return not self.check or _is_sound(stored)
        if elsewhere:
            raise InputError(
                "DEST holds the latent of another file under its name, from another source; "
                "choose another DEST, or replace it with --overwrite"
            )
        if info.source != key:
            _log.info("encoding %s: the latent in its place was made from %s", key, info.source)
        else:
            _log.info("encoding %s again: it has changed since it was encoded", key)
        return False

    def _is_unchanged(
        self, info: LatentInfo, entry: Entry, state: SourceState, *, elsewhere: bool
    ) -> bool:
        """Size and time distinguish versions of one file; two files may have them in common."""
        if info.source_xxh3 and (self.compare == "content" or elsewhere):
            return has_content(entry, info.source_xxh3)
        return info.source_state == state


def is_elsewhere(info: LatentInfo, entry: Entry) -> bool:
    """Whether a latent was made from a source in another place, as far as that is recorded."""
    return info.source_root not in ("", root_id(entry.root))


def has_content(entry: Entry, content: str) -> bool:
    """Whether a source's bytes have this hash.

    Raises:
        InputError: it changed since it was listed.
        OSError: it cannot be read.
    """
    with entry.open() as file:
        return content_hash(file) == content


def _is_sound(stored: StoredLatent) -> bool:
    try:
        sound = all(map(is_finite, stored.read_both()))
    except (InputError, OSError) as error:
        _log.info("encoding %s again: %s", stored.label, error)
        return False
    if not sound:
        _log.info("encoding %s again: it holds NaN or infinity", stored.label)
    return sound


@dataclass
class Shard:
    """A shard in the making: all its pictures, and the state of each.

    `name` is its file's. `stored` is what the file held before with this run's settings, by output;
    `fresh` are new latents, which wait in `data` from their `begin` on. `settled` counts the
    pictures that need no more work; `described` are stored latents of which something else is to be
    recorded. A stored latent stays until a fresh one replaces it, also if
    its source can no longer be read, or until it belongs to another shard. `orphans`, and all of a
    tar that could be listed only in `part`, stay in any case. `mixed`: the file holds latents that
    must not stay. `note` is of the tar that it is from, if that has a tag.
    """

    name: str
    planned: Sequence[Planned]
    note: TarNote | None = None
    part: bool = False
    orphans: frozenset[str] = frozenset()
    stored: dict[str, StoredLatent] | None = None
    mixed: bool = False
    fresh: dict[str, StoredLatent] = field(default_factory=dict)
    described: dict[str, LatentInfo] = field(default_factory=dict)
    settled: int = 0
    data: IO[bytes] | None = None


@dataclass(frozen=True)
class Job:
    """One picture to encode, and the shard that it belongs to, if any."""

    planned: Planned
    shard: Shard | None = None


class Storage(ABC):
    """How a run's latents are stored."""

    @abstractmethod
    def holds(self, job: Job, state: SourceState) -> StoredLatent | None:
        """The latent that is there, if it is whole and was made from the source in this state.

        Called in reading threads.

        Raises:
            InputError: the output is another program's file.
            StaeError: what is there must not be replaced.
        """

    @abstractmethod
    def save(
        self, job: Job, latent: Latent, info: LatentInfo, *, flip: Latent | None = None
    ) -> None:
        """Stores one latent, now or later; `flip` is that of the mirrored picture."""

    @abstractmethod
    def describe(self, job: Job, stored: StoredLatent, info: LatentInfo) -> None:
        """Records something else of a latent that is there; its data stay the same."""

    @abstractmethod
    def settle(self, job: Job) -> None:
        """Notes that a picture needs no more work: saved, found done, or failed."""

    @abstractmethod
    def fail(self, job: Job) -> bool:
        """Settles a picture without a latent: a stored one with other settings must not stay.

        Returns:
            Whether a latent stays in its place.
        """

    @abstractmethod
    def close(self) -> None:
        """Discards what an interrupted run left unwritten."""


class FileStorage(Storage):
    """Each latent in a file of its own."""

    def __init__(
        self, destination: Destination, expected: Expected, writer: WriteBehind[Written]
    ) -> None:
        self.destination, self.expected, self.writer = destination, expected, writer

    def holds(self, job: Job, state: SourceState) -> StoredLatent | None:
        found = stored_at(self.destination, job.planned.output)
        made = len(found) == 1 and self.expected.made(found[0], job.planned, state)
        return found[0] if made else None

    def save(
        self, job: Job, latent: Latent, info: LatentInfo, *, flip: Latent | None = None
    ) -> None:
        def write() -> Written:
            with self.destination.writing(job.planned.output, self.writer.turn) as path:
                return Written(1, write_latent(path, latent, info, flip=flip))

        self.writer.submit(latent.nbytes * (1 if flip is None else 2), write)

    def describe(self, job: Job, stored: StoredLatent, info: LatentInfo) -> None:
        def write() -> Written:
            try:
                latent, *flip = read_to_keep(stored)
            except InputError as error:
                message = f"`{stored.file.place}`: {error.message}"
                raise StaeError(message, "run the same command again") from error
            with self.destination.writing(job.planned.output, self.writer.turn) as path:
                return Written(0, write_latent(path, latent, info, flip=flip[0] if flip else None))

        self.writer.submit(stored.whole_size, write)

    def settle(self, job: Job) -> None:
        pass

    def fail(self, job: Job) -> bool:
        output = job.planned.output
        with suppress(InputError):  # another program's
            stored = stored_at(self.destination, output)
            if all(map(self.expected.matches, stored)):
                return bool(stored)
            self.destination.remove(output)
        return False

    def close(self) -> None:
        pass


def read_to_keep(stored: StoredLatent) -> list[Latent]:
    """What is stored, to be written again.

    Raises:
        InputError: it has changed since its header was read.
        StaeError: it is damaged.
    """
    try:
        return stored.read_both()
    except DamagedDataError as error:
        raise StaeError(
            f"`{stored.label}` is {error.message}", "run the same command with `--check`"
        ) from error


def stored_at(destination: Destination, name: str) -> list[StoredLatent]:
    """What an output holds; nothing if it is absent or damaged, and must be made again.

    Raises:
        InputError: it is another program's.
        StaeError: it cannot be read.
    """
    found = _stored_unless_damaged(destination, name)
    if found is None:  # or replaced by another process between two reads
        found = _stored_unless_damaged(destination, name)
    return found or []


def _stored_unless_damaged(destination: Destination, name: str) -> list[StoredLatent] | None:
    place = destination.place(name)
    try:
        return stored_in(destination.entry(name))
    except ForeignFileError as error:
        raise InputError(
            f"its output `{place}` exists and is {error.message}; "
            "move it, or replace it with --overwrite"
        ) from error
    except InputError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError):
            _log.info("`%s` is %s; it is made again", place, error.message)
            return None
        if isinstance(cause, ABSENT):
            return []
        message = f"cannot read `{place}`: {cause.strerror or cause}"
        raise StaeError(message, "check DEST and its permissions") from error

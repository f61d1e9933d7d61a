"""Storing latents in DEST: each in a file of its own, or many to a shard; what is done stays."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Literal

from stae_cli.errors import InputError, StaeError
from stae_cli.files.destination import Destination
from stae_cli.files.entries import SourceState
from stae_cli.files.header import ForeignFileError, Shape
from stae_cli.files.latents import Data, Latent, LatentInfo, latent_bytes, write_latent
from stae_cli.files.manifest import Manifest
from stae_cli.files.naming import Planned
from stae_cli.files.shards import TarNote, write_shard
from stae_cli.files.stored import StoredLatent, stored_in
from stae_cli.files.writebehind import WriteBehind

MEMORY_BYTES = 256 << 20  # of a shard that is being made; beyond, it waits on disk
REREADS = 5  # of a shard that others keep replacing


@dataclass(frozen=True)
class Written:
    """What one write put on disk."""

    outputs: int
    size: int  # bytes


@dataclass(frozen=True)
class Expected:
    """What a latent must say of itself to be taken for this run's."""

    weights_sha256: str
    prep: str
    dtype: Literal["float16", "float32"]

    def matches(self, stored: StoredLatent) -> bool:
        """Whether a stored latent was made with these settings."""
        info = stored.info
        return (
            info.weights_sha256 == self.weights_sha256
            and info.prep == self.prep
            and stored.dtype == self.dtype
        )

    def made(self, stored: StoredLatent, planned: Planned, state: SourceState) -> bool:
        """Whether a stored latent was made from this source with these settings."""
        info = stored.info
        return (
            self.matches(stored)
            and info.source == planned.entry.key
            and SourceState(info.source_size, info.source_mtime_ns, info.source_etag) == state
        )


@dataclass(frozen=True)
class Fresh:
    """A new latent of a shard; its data waits in the shard's from `begin` on."""

    info: LatentInfo
    shape: Shape
    dtype: str
    begin: int
    size: int


@dataclass
class Shard:
    """A shard in the making: all its pictures, and what became of those that were looked at.

    `name` is that of its file, `stored` what the file held before, by output; `settled` counts
    the pictures that need no more work. What was stored stays until something fresh replaces it,
    also where its source can no longer be read. `note` is of the tar that it is from, if that can
    be told from others.
    """

    name: str
    planned: Sequence[Planned]
    note: TarNote | None = None
    stored: dict[str, StoredLatent] | None = None
    fresh: dict[str, Fresh] = field(default_factory=dict)
    settled: int = 0
    data: IO[bytes] | None = None


@dataclass(frozen=True)
class Job:
    """One picture to encode, and the shard that it belongs to, if any."""

    planned: Planned
    shard: Shard | None = None


class Storage(ABC):
    """How a run's latents are kept."""

    @abstractmethod
    def holds(self, job: Job, state: SourceState) -> bool:
        """Whether the output is whole and was made from the source in this state.

        Called in reading threads.

        Raises:
            InputError: another program's file is in its place.
            StaeError: what is there must not be replaced.
        """

    @abstractmethod
    def save(self, job: Job, latent: Latent, info: LatentInfo) -> None:
        """Keeps one latent, sooner or later."""

    @abstractmethod
    def settle(self, job: Job) -> None:
        """Notes that a picture needs no more work: saved, found done, or failed."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of what a run that stopped half-way left unwritten."""


class FileStorage(Storage):
    """Each latent in a file of its own."""

    def __init__(
        self, destination: Destination, expected: Expected, writer: WriteBehind[Written]
    ) -> None:
        self.destination, self.expected, self.writer = destination, expected, writer

    def holds(self, job: Job, state: SourceState) -> bool:
        stored = _stored_in(self.destination, job.planned.output)
        return len(stored) == 1 and self.expected.made(stored[0], job.planned, state)

    def save(self, job: Job, latent: Latent, info: LatentInfo) -> None:
        def write() -> Written:
            with self.destination.writing(job.planned.output) as path:
                return Written(1, write_latent(path, latent, info))

        self.writer.submit(latent.nbytes, write)

    def settle(self, job: Job) -> None:
        pass

    def close(self) -> None:
        pass


class ShardStorage(Storage):
    """Many latents to a shard, which appears whole or not at all.

    A shard that exists is made anew only when something in it is new; what else it holds of the
    same pictures is kept, also where a source cannot be reached just now.

    Args:
        known: whether an output is this run's, in whichever shard.
        manifest: tells which shard holds what.
    """

    def __init__(
        self,
        destination: Destination,
        expected: Expected,
        writer: WriteBehind[Written],
        *,
        known: Callable[[str], bool],
        manifest: Manifest,
    ) -> None:
        self.destination, self.expected, self.writer = destination, expected, writer
        self.known, self.manifest = known, manifest
        self._waiting: set[IO[bytes]] = set()

    def holds(self, job: Job, state: SourceState) -> bool:
        shard, output = _shard_of(job), job.planned.output
        if shard.stored is None:
            shard.stored = self._looked_for(shard)
        stored = shard.stored.get(output)
        return stored is not None and self.expected.made(stored, job.planned, state)

    def save(self, job: Job, latent: Latent, info: LatentInfo) -> None:
        shard = _shard_of(job)
        if shard.data is None:
            shard.data = tempfile.SpooledTemporaryFile(MEMORY_BYTES)  # noqa: SIM115
            self._waiting.add(shard.data)
        begin = shard.data.tell()
        try:
            size = shard.data.write(latent_bytes(latent))
        except OSError as error:
            raise self.destination.failure(error, shard.name) from error
        channels, rows, columns = latent.shape
        shape = (channels, rows, columns)
        shard.fresh[job.planned.output] = Fresh(info, shape, latent.dtype.name, begin, size)

    def settle(self, job: Job) -> None:
        shard = _shard_of(job)
        shard.settled += 1
        if shard.settled < len(shard.planned):
            return
        if shard.stored is None and not shard.fresh:  # all failed before they were compared
            shard.stored = self._looked_for(shard)
        moved = (shard.stored or {}).keys() - {planned.output for planned in shard.planned}
        if shard.fresh or moved:  # to other shards
            self.manifest.outdate()
            size = shard.data.tell() if shard.data else 0
            self.writer.submit(min(size, MEMORY_BYTES), lambda: self._write(shard))
        for member in _members(shard):
            self.manifest.add(member.output, shard.name, member.info)

    def close(self) -> None:
        for data in self._waiting:
            data.close()

    def _looked_for(self, shard: Shard) -> dict[str, StoredLatent]:
        place = self.destination.place(shard.name)
        try:
            members = _stored_in(self.destination, shard.name)
        except InputError as error:
            raise StaeError(error.message, "choose another DEST") from error
        stored = {member.key: member for member in members}
        stranger = next((key for key in stored if not self.known(key)), None)
        if stranger is not None:
            raise StaeError(
                f"`{place}` holds `{stranger}`, which is not among this run's sources",
                "choose another DEST for other sources; if that source is gone for good, "
                "`--overwrite` makes the shards anew without it",
            )
        return stored

    def _write(self, shard: Shard) -> Written:
        """Runs in a writing thread."""
        members = list(_members(shard))
        if not members:
            self.destination.remove(shard.name)
            return Written(0, 0)
        described = [(m.output, m.info, m.shape, m.dtype) for m in members]
        with self.destination.writing(shard.name) as path:
            size = write_shard(
                path, described, (member.read() for member in members), note=shard.note
            )
        if shard.data is not None:
            shard.data.close()
            self._waiting.discard(shard.data)
        return Written(len(shard.fresh), size)


@dataclass(frozen=True)
class _Member:
    output: str
    info: LatentInfo
    shape: Shape
    dtype: str
    read: Callable[[], Data]


def _members(shard: Shard) -> Iterator[_Member]:
    """New and kept latents, in the order of the plan."""
    for output in (planned.output for planned in shard.planned):
        if (new := shard.fresh.get(output)) is not None:
            yield _Member(output, new.info, new.shape, new.dtype, partial(_waiting, shard, new))
        elif shard.stored and (old := shard.stored.get(output)) is not None:
            yield _Member(output, old.info, old.shape, old.dtype, partial(_kept, old))


def _waiting(shard: Shard, new: Fresh) -> bytes:
    assert shard.data is not None
    shard.data.seek(new.begin)
    return shard.data.read(new.size)


def _kept(stored: StoredLatent) -> Data:
    for _ in range(REREADS):
        try:
            return latent_bytes(stored.read())
        except InputError:
            stored = _found_again(stored)
    raise _changed(stored)


def _found_again(stored: StoredLatent) -> StoredLatent:
    """The same latent in the shard that another process of the same run made meanwhile."""
    try:
        for found in stored_in(stored.file):
            if (found.key, found.info) == (stored.key, stored.info):
                return found
    except InputError as error:
        raise _changed(stored) from error
    raise _changed(stored)


def _changed(stored: StoredLatent) -> StaeError:
    return StaeError(
        f"`{stored.file.place}` was changed by another program meanwhile",
        "run the same command again: it goes on where it stopped",
    )


def _shard_of(job: Job) -> Shard:
    assert job.shard is not None
    return job.shard


def _stored_in(destination: Destination, name: str) -> list[StoredLatent]:
    """What an output holds; nothing where it is absent or damaged, and to be done anew.

    Raises:
        InputError: it is another program's.
    """
    try:
        return stored_in(destination.entry(name))
    except ForeignFileError as error:
        raise InputError(
            f"its output `{destination.place(name)}` exists and is {error.message}; "
            "move it, or replace it with --overwrite"
        ) from error
    except InputError:
        return []

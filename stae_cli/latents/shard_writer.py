"""Storing latents in shards: many to a file, each made anew only when something in it is new."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import IO

from stae_cli.errors import InputError, StaeError
from stae_cli.flow.write_behind import WriteBehind
from stae_cli.latents.format import (
    DamagedDataError,
    Data,
    Latent,
    LatentInfo,
    checksum,
    latent_bytes,
)
from stae_cli.latents.listing import StoredLatent, stored_in
from stae_cli.latents.manifest import Manifest
from stae_cli.latents.safetensors_header import Shape
from stae_cli.latents.shard_format import write_shard
from stae_cli.latents.writer import Expected, Fresh, Job, Shard, Storage, Written, stored_at
from stae_cli.storage.destination import Destination
from stae_cli.storage.entry import SourceState

MEMORY_BYTES = 256 << 20  # of a shard that is being made; beyond, it waits on disk
REREADS = 5  # of a shard that others keep replacing

_log = logging.getLogger(__name__)


class ShardStorage(Storage):
    """Many latents to a shard, which appears whole or not at all.

    A shard that exists is made anew only when something in it is new; what else it holds of the
    same pictures is kept, also where a source cannot be reached just now.

    Args:
        known: whether an output is this run's, in whichever shard.
        manifest: tells which shard holds what.
        overwrite: whether shards may lose what is not this run's.
    """

    def __init__(
        self,
        destination: Destination,
        expected: Expected,
        writer: WriteBehind[Written],
        *,
        known: Callable[[str], bool],
        manifest: Manifest,
        overwrite: bool,
    ) -> None:
        self.destination, self.expected, self.writer = destination, expected, writer
        self.known, self.manifest, self.overwrite = known, manifest, overwrite
        self._waiting: set[IO[bytes]] = set()
        self._looking = threading.Lock()

    def holds(self, job: Job, state: SourceState) -> bool:
        shard, output = _shard_of(job), job.planned.output
        stored = self._look(shard).get(output)
        return stored is not None and self.expected.made(stored, job.planned, state)

    def save(self, job: Job, latent: Latent, info: LatentInfo) -> None:
        shard = _shard_of(job)
        if shard.data is None:
            shard.data = tempfile.SpooledTemporaryFile(MEMORY_BYTES)  # noqa: SIM115
            self._waiting.add(shard.data)
        begin = shard.data.tell()
        try:
            data = latent_bytes(latent)
            size = shard.data.write(data)
        except OSError as error:
            raise self.destination.failure(error, shard.name) from error
        channels, rows, columns = latent.shape
        shape = (channels, rows, columns)
        info = replace(info, data_crc32=checksum(data))
        shard.fresh[job.planned.output] = Fresh(info, shape, latent.dtype.name, begin, size)

    def settle(self, job: Job) -> None:
        shard = _shard_of(job)
        shard.settled += 1
        if shard.settled < len(shard.planned):
            return
        if len(shard.fresh) < len(shard.planned):
            self._look(shard)
        moved = (shard.stored or {}).keys() - {planned.output for planned in shard.planned}
        if shard.fresh or shard.mixed or (moved and not shard.part):  # to other shards
            self.manifest.outdate()
            _log.info(
                "writing %s: %d of its %d latents are new%s%s",
                shard.name,
                len(shard.fresh),
                len(shard.planned),
                ", some have other weights or settings" if shard.mixed else "",
                f", {len(moved)} are in other shards now" if moved else "",
            )
            size = shard.data.tell() if shard.data else 0
            self.writer.submit(min(size, MEMORY_BYTES), lambda: self._write(shard))
        for member in _members(shard):
            self.manifest.add(member.output, shard.name, member.info)

    def fail(self, job: Job) -> None:
        self.settle(job)

    def close(self) -> None:
        for data in self._waiting:
            data.close()

    def _look(self, shard: Shard) -> dict[str, StoredLatent]:
        """What the shard held before, looked for once.

        Raises:
            StaeError: it holds what is not this run's.
        """
        # At once for all that ask: another process may be replacing the file, and what is kept must
        # be what pictures were passed over for.
        with self._looking:
            if shard.stored is None:
                shard.stored = self._found(shard)
        return shard.stored

    def _found(self, shard: Shard) -> dict[str, StoredLatent]:
        try:
            members = stored_at(self.destination, shard.name)
        except InputError as error:
            raise StaeError(error.message, "choose another DEST") from error
        stranger = next((m.key for m in members if not self.known(m.key)), None)
        if stranger is not None and not self.overwrite:
            raise StaeError(
                f"`{self.destination.place(shard.name)}` holds `{stranger}`, which is not "
                "among this run's sources",
                "choose another DEST for other sources; if that source is gone for good, "
                "`--overwrite` makes the shards anew without it",
            )
        ours = [m for m in members if self.known(m.key) and self.expected.matches(m)]
        shard.mixed = len(ours) < len(members)
        return {member.key: member for member in ours}

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
    outputs = dict.fromkeys(planned.output for planned in shard.planned)
    if shard.part:
        outputs |= dict.fromkeys(shard.stored or ())
    for output in outputs:
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
        except DamagedDataError as error:
            raise StaeError(
                f"`{stored.label}` is {error.message}", "remove that file and run the command again"
            ) from error
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

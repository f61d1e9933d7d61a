"""Storing latents in shards, each rewritten only if something in it is new."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import IO

from stae_cli.errors import InputError, StaeError
from stae_cli.flow.write_behind import WriteBehind
from stae_cli.latents.format import Latent, StoredLatent, latent_bytes, with_checksums
from stae_cli.latents.info import Data, LatentInfo
from stae_cli.latents.listing import stored_in
from stae_cli.latents.manifest import Manifest
from stae_cli.latents.safetensors_header import read_tensors
from stae_cli.latents.shard_format import HEADER_LIMIT, TarNote, parse_note, write_shard
from stae_cli.latents.writer import (
    Expected,
    Job,
    Shard,
    Storage,
    Written,
    read_to_keep,
    stored_at,
)
from stae_cli.storage.destination import Destination
from stae_cli.storage.entry import SourceState

MEMORY_BYTES = 256 << 20  # of a shard in the making; more than that waits on disk
REREADS = 5  # of a shard that other processes replace

_log = logging.getLogger(__name__)


class ShardStorage(Storage):
    """Many latents per shard, which appears whole or not at all.

    An existing shard is rewritten only if something in it is new. Its other latents of the same
    pictures are kept, also those whose source cannot be reached now.

    Args:
        known: whether an output belongs to this run, in any shard.
        manifest: records which shard holds what.
        overwrite: whether shards may lose latents that are not of this run.
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

    def holds(self, job: Job, state: SourceState) -> StoredLatent | None:
        shard, output = _shard_of(job), job.planned.output
        stored = self._look(shard).get(output)
        return stored if stored and self.expected.made(stored, job.planned, state) else None

    def save(
        self, job: Job, latent: Latent, info: LatentInfo, *, flip: Latent | None = None
    ) -> None:
        shard = _shard_of(job)
        if shard.data is None:
            shard.data = tempfile.SpooledTemporaryFile(MEMORY_BYTES)  # noqa: SIM115
            self._waiting.add(shard.data)
        begin = shard.data.tell()
        data = [latent_bytes(each) for each in (latent, flip) if each is not None]
        with self.destination.reporting(shard.name):
            for each in data:
                shard.data.write(each)
        channels, rows, columns = latent.shape
        output, file = job.planned.output, self.destination.entry(shard.name)
        shard.fresh[output] = StoredLatent(
            output,
            with_checksums(info, data),
            (channels, rows, columns),
            latent.dtype.name,
            file,
            SourceState(0),
            begin,
            is_alone=False,
        )

    def describe(self, job: Job, stored: StoredLatent, info: LatentInfo) -> None:
        _shard_of(job).described[stored.key] = info

    def settle(self, job: Job) -> None:
        shard = _shard_of(job)
        shard.settled += 1
        if shard.settled < len(shard.planned):
            return
        if len(shard.fresh) < len(shard.planned):
            self._look(shard)
        moved = (shard.stored or {}).keys() - {planned.output for planned in shard.planned}
        moved = set() if shard.part else moved - shard.orphans  # to other shards
        if shard.fresh or shard.described or shard.mixed or moved:
            self.manifest.outdate()
            _log.info(
                "writing %s: %d of its %d latents are new%s%s%s",
                shard.name,
                len(shard.fresh),
                len(shard.planned),
                f", {len(shard.described)} have other captions" if shard.described else "",
                ", some have other weights or settings" if shard.mixed else "",
                f", {len(moved)} are in other shards now" if moved else "",
            )
            size = shard.data.tell() if shard.data else 0
            self.writer.submit(min(size, MEMORY_BYTES), lambda: self._write(shard))
        for latent in _latents(shard):
            self.manifest.add(latent.key, shard.name, latent.info)

    def fail(self, job: Job) -> bool:
        self.settle(job)
        return job.planned.output in self._look(_shard_of(job))

    def close(self) -> None:
        for data in self._waiting:
            data.close()

    def _look(self, shard: Shard) -> dict[str, StoredLatent]:
        """What the shard held before; read once.

        Raises:
            StaeError: it holds latents that are not of this run.
        """
        # Once for all threads: another process may be replacing the file, and the latents that are
        # kept must be those for which pictures were skipped.
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
                "choose another DEST for other sources, or give all of DEST's sources",
            )
        ours = [m for m in members if self.known(m.key) and self.expected.matches(m)]
        shard.mixed = len(ours) < len(members)
        return {member.key: member for member in ours}

    def _write(self, shard: Shard) -> Written:
        """Runs in a writing thread."""
        latents = list(_latents(shard))
        if not latents:
            self.destination.remove(shard.name)
            return Written(0, 0)
        with self.destination.writing(shard.name, self.writer.turn) as path:
            data = (_data(shard, latent) for latent in latents)
            size = write_shard(path, latents, data, note=shard.note)
        if shard.data is not None:
            shard.data.close()
            self._waiting.discard(shard.data)
        return Written(len(shard.fresh), size)


def _latents(shard: Shard) -> Iterator[StoredLatent]:
    """New and kept latents, in the order of the plan."""
    outputs = dict.fromkeys(planned.output for planned in shard.planned)
    stored = shard.stored or {}
    outputs |= dict.fromkeys(key for key in stored if shard.part or key in shard.orphans)
    for output in outputs:
        if (latent := shard.fresh.get(output)) is not None:
            yield latent
        elif (latent := stored.get(output)) is not None:
            yield replace(latent, info=shard.described.get(output, latent.info))


def _data(shard: Shard, latent: StoredLatent) -> Data:
    if latent is not shard.fresh.get(latent.key):
        assert shard.stored is not None
        return _kept(shard.stored[latent.key])
    assert shard.data is not None
    shard.data.seek(latent.begin)
    return shard.data.read(latent.whole_size)


def _kept(stored: StoredLatent) -> Data:
    for _ in range(REREADS):
        try:
            return b"".join(map(latent_bytes, read_to_keep(stored)))
        except InputError:
            stored = _found_again(stored)
    raise _changed(stored)


def _found_again(stored: StoredLatent) -> StoredLatent:
    """The same latent in the shard that another process of the same run made meanwhile."""
    try:
        for found in stored_in(stored.file):
            info = replace(found.info, caption=stored.info.caption, label=stored.info.label)
            if (found.key, info) == (stored.key, stored.info):
                return found
    except InputError as error:
        raise _changed(stored) from error
    raise _changed(stored)


def _changed(stored: StoredLatent) -> StaeError:
    return StaeError(
        f"`{stored.file.place}` was changed by another program meanwhile",
        "run the same command again: it resumes",
    )


def _shard_of(job: Job) -> Shard:
    assert job.shard is not None
    return job.shard


def all_stored(
    destination: Destination,
    shard_name: Callable[[int], str],
    *,
    etag: str,
    shard_size: int,
    captions: bool,
    is_ours: Callable[[StoredLatent], bool],
) -> list[StoredLatent] | None:
    """The latents of a tar on a store, if DEST has all of them; then it need not be fetched.

    Only headers are read.

    Args:
        destination: DEST.
        shard_name: the name of each of the tar's shards, by number.
        etag: the current tag of the tar.
        shard_size: pictures per shard.
        captions: whether captions and labels must have been read too.
        is_ours: whether a latent is what this run would make of its source.

    Returns:
        None if anything is missing or in doubt, or if the tar has members that cannot be encoded:
        these must be listed again.
    """
    try:
        first = destination.entry(shard_name(0))
        with first.open() as file:
            _, metadata, _ = read_tensors(file, first.state().size, limit=HEADER_LIMIT)
        note = parse_note(metadata.get("tar"))
        if note is None or note.etag != etag or note.problems or note.pictures < 1:
            return None
        if captions and not note.captions:
            return None
        stored = list(_stored(destination, shard_name, note, shard_size))
    except (OSError, InputError):
        return None
    whole = len({latent.key for latent in stored}) == note.pictures
    return stored if whole and all(map(is_ours, stored)) else None


def _stored(
    destination: Destination, shard_name: Callable[[int], str], note: TarNote, size: int
) -> Iterator[StoredLatent]:
    """The latents of all shards; stops at a shard that holds fewer than it should."""
    count = -(-note.pictures // size)
    for number in range(count):
        latents = stored_in(destination.entry(shard_name(number)))
        if len(latents) != min(size, note.pictures - number * size):
            return
        yield from latents
    if destination.holds(shard_name(count)):  # surplus, which must be reported
        raise InputError("more shards than the tar has pictures for")

"""Encoding some units of a run, in whichever process: from sources to stored latents."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np

from stae_cli._version import __version__
from stae_cli.flow.read_ahead import Reserve
from stae_cli.images.buffers import Buffers
from stae_cli.latents.format import Latent, StoredLatent, is_finite
from stae_cli.latents.info import LatentInfo
from stae_cli.latents.manifest import Manifest
from stae_cli.latents.run_record import CLASS_FOLDERS, FILES, SHARDS, STEM, WHOLE, RunRecord
from stae_cli.latents.shard_writer import ShardStorage, all_stored
from stae_cli.latents.writer import Expected, FileStorage, Job, Storage
from stae_cli.runs.encode_plan import EncodeSettings, KnownOutputs
from stae_cli.runs.orphans import orphans_of_tar
from stae_cli.runs.pipeline import Pipeline
from stae_cli.runs.read_picture import Picture, read_picture, source_state
from stae_cli.runs.tally import Tally
from stae_cli.runs.units import Unit
from stae_cli.runs.workers import Task
from stae_cli.storage.destination import Destination
from stae_cli.storage.entry import DamagedArchive, Entry, Problem, root_id
from stae_cli.storage.notes import NO_LABEL, Notes
from stae_cli.storage.parquet import Row
from stae_cli.storage.remote_entry import RemoteEntry

if TYPE_CHECKING:
    from stae_cli.codec.pixel_codec import PixelCodec

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodeTask(Task[Unit]):
    """What each process of a run knows, whichever units it encodes; it can be pickled.

    `weights` and `weights_sha256` name the checkpoint; `compute_dtype` is the network's; `known`
    are all the run's outputs; `threads` read, and as many write; `moved` is as in `Expected`.
    """

    destination: Destination
    settings: EncodeSettings
    weights: str
    weights_sha256: str
    compute_dtype: str
    known: KnownOutputs
    threads: int
    moved: bool = False

    @property
    def record(self) -> RunRecord:
        settings = self.settings
        return RunRecord(
            kind="latents",
            weights=self.weights,
            weights_sha256=self.weights_sha256,
            prep=settings.prep.describe(),
            output=settings.save_dtype,
            layout=SHARDS if settings.shard_size else FILES,
            shard_size=settings.shard_size,
            names=WHOLE if settings.keep_extension else STEM,
            compute_dtype=self.compute_dtype,
            labels=CLASS_FOLDERS if settings.class_folders else "",
            image_column=settings.image_column,
        )

    @property
    def strict(self) -> bool:
        return self.settings.strict

    def new_manifest(self) -> Manifest | None:
        settings = self.settings
        return Manifest(self.destination, settings.share) if settings.shard_size else None

    def do(self, parts: Iterable[Unit], codec: PixelCodec, tally: Tally) -> None:
        encoding = _Encoding(self, codec, tally)
        try:
            with closing(encoding.storage):
                encoding.run(encoding.jobs(parts))
        finally:
            self.destination.finish()


class _Encoding(Pipeline[Job, Picture, Sequence[Latent | None]]):
    """The encoding of some units."""

    write_bytes = 64 << 20  # latents are small

    def __init__(self, task: EncodeTask, codec: PixelCodec, tally: Tally) -> None:
        super().__init__(codec, tally, threads=task.threads)
        self.task, self.settings = task, task.settings
        self.prep = task.settings.prep.describe()
        self.expected = Expected(
            *(task.weights_sha256, self.prep, task.settings.save_dtype, task.compute_dtype),
            compare=task.settings.compare,
            check=task.settings.check,
            moved=task.moved,
        )
        self.buffers = Buffers(codec.host_memory)
        self._to_describe: dict[str, tuple[StoredLatent, LatentInfo]] = {}
        self.storage = self._storage()

    def _storage(self) -> Storage:
        destination, manifest = self.task.destination, self.tally.manifest
        if manifest is None:
            return FileStorage(destination, self.expected, self.writer)
        return ShardStorage(
            destination,
            self.expected,
            self.writer,
            known=self.task.known.__contains__,
            manifest=manifest,
            overwrite=self.settings.overwrite,
        )

    def jobs(self, units: Iterable[Unit]) -> Iterator[Job | Problem]:
        """What is to be done in the units; pictures of finished tars are counted as skipped."""
        for unit in units:
            finished = self._finished(unit)
            if finished is None:
                yield from self._jobs_of(unit)
                continue
            _log.info("skipping the tar of %s: its latents are all there", unit.folder)
            for latent in finished:
                if self.tally.manifest is not None:
                    self.tally.manifest.add(latent.key, latent.file.key, latent.info)
                self.tally.skip()

    def _jobs_of(self, unit: Unit) -> Iterator[Job | Problem]:
        """All that is to be done in a unit; latents that its tar has no members for are noted."""
        destination, outputs, whole = self.task.destination, set(), True
        root = ""
        for job in unit.jobs(destination.holds):
            if isinstance(job, Problem):
                whole = whole and not isinstance(job, DamagedArchive)
                outputs.add(self.settings.layout.output(job.key))
            else:
                outputs.add(job.planned.output)
                root = root or root_id(job.planned.entry.root)
            yield job
        if unit.folder and not self.settings.shard_size and whole:
            for orphan in orphans_of_tar(destination, unit.folder, outputs, root):
                self.tally.orphans.append(orphan)
                if self.settings.prune:
                    destination.remove(orphan.file)

    def _finished(self, unit: Unit) -> Sequence[StoredLatent] | None:
        """The latents of a tar that need not be fetched; None if the unit must be looked at."""
        settings = self.settings
        if not (unit.etag and settings.shard_size) or settings.overwrite:
            return None
        return all_stored(
            self.task.destination,
            unit.shard_name,
            etag=unit.etag,
            shard_size=settings.shard_size,
            captions=settings.captions,
            is_ours=lambda latent: self._made_from(unit, latent),
        )

    def _made_from(self, unit: Unit, stored: StoredLatent) -> bool:
        info = stored.info
        return (
            self.expected.matches(stored)
            and info.source_etag == unit.etag
            and info.source.startswith(unit.folder)
            and self.settings.layout.output(info.source) == stored.key
        )

    def label(self, item: Job) -> str:
        return item.planned.entry.key

    def read(self, item: Job, reserve: Reserve) -> Picture | None:
        entry = item.planned.entry
        if not self.settings.overwrite:
            stored = self.storage.holds(item, source_state(entry))
            if stored is not None:
                _log.debug("skipping %s: encoded already", entry.key)
                self._look_at_notes(entry, stored)
                return None
        picture = read_picture(
            entry,
            self.settings.prep,
            patch=self.codec.architecture.downsample,
            reserve=reserve,
            buffers=self.buffers,
        )
        return replace(picture, notes=entry.notes()) if self.settings.captions else picture

    def _look_at_notes(self, entry: Entry, stored: StoredLatent) -> None:
        """Remembers what is to be recorded of a finished latent, if its caption or label is new."""
        before, far = stored.info, isinstance(entry, RemoteEntry) and bool(entry.sidecars)
        # A request for each finished picture would take hours; a row changes with its file.
        is_known = (far and before.caption) or (
            isinstance(entry, Row) and (before.caption or before.label != NO_LABEL)
        )
        if not self.settings.captions or (is_known and self.settings.compare == "time"):
            return
        notes = entry.notes().over(Notes(label=before.label))
        if (notes.caption, notes.label) != (before.caption, before.label):
            info = replace(before, caption=notes.caption, label=notes.label)
            self._to_describe[stored.key] = stored, info

    def patches(self, loaded: Picture) -> int:
        return loaded.patches

    def begin(self, pack: Sequence[Picture]) -> Callable[[], Sequence[Sequence[Latent | None]]]:
        both = [picture.prepared.both for picture in pack]
        finish = self.codec.begin_encoding(list(chain.from_iterable(both)))

        def latents() -> Sequence[Sequence[Latent | None]]:
            found = iter(finish())
            return [list(islice(found, len(pixels))) for pixels in both]

        return latents

    def skipped(self, item: Job) -> None:
        key = item.planned.output.removesuffix(self.settings.layout.suffix)
        if key in self._to_describe:
            self.tally.noted += 1
            self.storage.describe(item, *self._to_describe.pop(key))
        self.storage.settle(item)

    def failed(self, item: Job) -> bool:
        return self.storage.fail(item)

    def save(self, item: Job, loaded: Picture, result: Sequence[Latent | None]) -> None:
        latents = []
        for found in result:
            if found is None:
                self.fail(item, "the network gave NaN or infinity, in float32 too")
                return
            with np.errstate(over="ignore"):  # what overflows is refused on the next line
                latents.append(found.astype(self.settings.save_dtype, copy=False))
            if not is_finite(latents[-1]):
                self.fail(item, "latents exceed float16; use --save-dtype float32")
                return
        latent, *flip = latents
        info = self._info(item.planned.entry, loaded)
        self.tally.pixels += loaded.prepared.width * loaded.prepared.height
        self.storage.save(item, latent, info, flip=flip[0] if flip else None)
        self.storage.settle(item)

    def _info(self, entry: Entry, picture: Picture) -> LatentInfo:
        prepared, architecture = picture.prepared, self.codec.architecture
        return LatentInfo(
            stae_version=__version__,
            architecture=architecture.describe(),
            weights=self.task.weights,
            weights_sha256=self.task.weights_sha256,
            downsample=architecture.downsample,
            latent_channels=architecture.channels,
            source=entry.key,
            source_size=picture.source.size,
            source_mtime_ns=picture.source.mtime_ns,
            source_etag=picture.source.etag,
            source_root=root_id(entry.root),
            source_xxh3=picture.content,
            width=prepared.width,
            height=prepared.height,
            original_width=prepared.original_width,
            original_height=prepared.original_height,
            prep=self.prep,
            compute_dtype=self.task.compute_dtype,
            caption=picture.notes.caption,
            label=picture.notes.label,
        )

"""Pictures to latents, unit by unit, in this process: what an encode run does in each of its."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from stae_cli._version import __version__
from stae_cli.flow.batching import pack
from stae_cli.flow.read_ahead import Reserve, read_ahead
from stae_cli.flow.write_behind import WriteBehind
from stae_cli.images.buffers import Buffers
from stae_cli.latents.format import Latent, LatentInfo, StoredLatent, is_finite
from stae_cli.latents.manifest import Manifest
from stae_cli.latents.run_record import FILES, SHARDS, STEM, WHOLE, RunRecord
from stae_cli.latents.shard_writer import ShardStorage, all_stored
from stae_cli.latents.writer import Expected, FileStorage, Job, Storage, Written
from stae_cli.runs.ahead import computed
from stae_cli.runs.encode_plan import EncodeSettings, KnownOutputs
from stae_cli.runs.read_picture import READ_AHEAD_BYTES, Picture, read_picture, source_state
from stae_cli.runs.tally import Report, problem_or
from stae_cli.runs.units import Unit
from stae_cli.storage.destination import Destination
from stae_cli.storage.entry import Problem

if TYPE_CHECKING:
    from stae_cli.codec.pixel_codec import PixelCodec

WRITE_BEHIND_BYTES = 64 << 20


@dataclass(frozen=True)
class EncodeTask:
    """What each process of a run knows, whichever units it encodes; it can be pickled.

    `weights` and `weights_sha256` name the checkpoint; `known` are all the run's outputs.
    """

    destination: Destination
    settings: EncodeSettings
    weights: str
    weights_sha256: str
    known: KnownOutputs

    @property
    def record(self) -> RunRecord:
        """What DEST says of all its latents."""
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
        )

    @property
    def strict(self) -> bool:
        """Whether the first failure is the end."""
        return self.settings.strict

    def do(self, part: Unit, codec: PixelCodec, report: Report) -> bytes:
        """Encodes one unit; returns lines for the manifest. Raises what `encode_units` raises."""
        encode_units(self, [part], codec, report, self._manifest)
        return self._manifest.take()

    @cached_property
    def _manifest(self) -> Manifest:
        """One for all the units of a process, which outdates that of DEST once."""
        return Manifest(self.destination, self.settings.share)


def encode_units(
    task: EncodeTask,
    units: Sequence[Unit],
    codec: PixelCodec,
    report: Report,
    manifest: Manifest,
) -> None:
    """Encodes what is not done yet, and counts it in `report`.

    Args:
        task: of the run, whose DEST is prepared and has its record.
        units: of the run.
        codec: runs the network, with the task's weights.
        report: of these units.
        manifest: gets what their shards hold.

    Raises:
        StaeError: DEST belongs to another run, or can no longer be written to.
    """
    _Encoding(task, codec, report, manifest).run(units)


class _Encoding:
    """The state of some units' encoding."""

    def __init__(
        self, task: EncodeTask, codec: PixelCodec, report: Report, manifest: Manifest
    ) -> None:
        self.task, self.settings = task, task.settings
        self.codec, self.report, self.manifest = codec, report, manifest
        self.expected = Expected(
            task.weights_sha256, task.settings.prep.describe(), task.settings.save_dtype
        )
        self.buffers = Buffers(codec.host_memory)
        self.threads = task.settings.workers or os.cpu_count() or 1

    def run(self, units: Sequence[Unit]) -> None:
        report = self.report
        writer: WriteBehind[Written] = WriteBehind(
            threads=self.threads,
            max_bytes=WRITE_BEHIND_BYTES,
            on_written=lambda written: report.written(written.size, written.outputs),
        )
        with (
            closing(self._storage(writer)) as storage,
            writer,
            closing(
                read_ahead(
                    self._jobs(units),
                    lambda job, reserve: self._read(job, storage, reserve),
                    threads=self.threads,
                    max_bytes=READ_AHEAD_BYTES,
                )
            ) as results,
        ):
            packs = pack(
                self._pictures(results, storage),
                patches=lambda item: item[1].patches,
                limit=self.codec.batch_patches,
            )
            for items, latents in computed(
                packs, self._begun, report, ahead=self.codec.runs_beside
            ):
                with report.spending("writing"):
                    for (job, picture), latent in zip(items, latents, strict=True):
                        self._save(job, picture, latent, storage)
            with report.spending("writing"):
                writer.drain()

    def _begun(self, items: Sequence[tuple[Job, Picture]]) -> Callable[[], list[Latent | None]]:
        return self.codec.begin_encoding([picture.prepared.pixels for _, picture in items])

    def _storage(self, writer: WriteBehind[Written]) -> Storage:
        task, expected = self.task, self.expected
        if self.settings.shard_size:
            return ShardStorage(
                task.destination,
                expected,
                writer,
                known=task.known.__contains__,
                manifest=self.manifest,
                overwrite=self.settings.overwrite,
            )
        return FileStorage(task.destination, expected, writer)

    def _jobs(self, units: Sequence[Unit]) -> Iterator[Job | Problem]:
        for unit in units:
            if not self._is_finished(unit):
                yield from unit.jobs(self.task.destination.holds)

    def _is_finished(self, unit: Unit) -> bool:
        """Whether this is a tar that need not be fetched; if so, its latents are counted."""
        settings = self.settings
        if not (unit.etag and settings.shard_size) or settings.overwrite:
            return False
        stored = all_stored(
            self.task.destination,
            unit.shard_name,
            etag=unit.etag,
            shard_size=settings.shard_size,
            is_ours=lambda latent: self._made_from(unit, latent),
        )
        for latent in stored or ():
            self.manifest.add(latent.key, latent.file.key, latent.info)
            self.report.skip()
        return stored is not None

    def _made_from(self, unit: Unit, stored: StoredLatent) -> bool:
        info, layout = stored.info, self.settings.layout
        return (
            self.expected.matches(stored)
            and info.source_etag == unit.etag
            and info.source.startswith(unit.folder)
            and layout.output(info.source) == stored.key
        )

    def _read(
        self, job: Job | Problem, storage: Storage, reserve: Reserve
    ) -> tuple[Job | None, Picture | Problem | None]:
        """Runs in a reading thread; no picture means that the output is there already."""
        if isinstance(job, Problem):
            return None, job
        planned = job.planned

        def read() -> Picture | None:
            if not self.settings.overwrite and storage.holds(job, source_state(planned)):
                return None
            return read_picture(
                planned,
                self.settings.prep,
                patch=self.codec.architecture.downsample,
                reserve=reserve,
                buffers=self.buffers,
            )

        return job, problem_or(planned.entry.key, read)

    def _pictures(
        self,
        results: Iterable[tuple[Job | None, Picture | Problem | None]],
        storage: Storage,
    ) -> Iterator[tuple[Job, Picture]]:
        """The pictures among the results; everything else is counted and settled."""
        for job, result in results:
            if self.report.interrupted:
                return
            if isinstance(result, Picture) and job is not None:
                yield job, result
                continue
            if isinstance(result, Problem):
                self.report.fail(result)
                if job is not None:
                    storage.fail(job)
            else:
                self.report.skip()
                if job is not None:
                    storage.settle(job)

    def _save(self, job: Job, picture: Picture, latent: Latent | None, storage: Storage) -> None:
        kept = self._kept(job.planned.entry.key, latent)
        if isinstance(kept, Problem):
            self.report.fail(kept)
            storage.fail(job)
            return
        self.report.pixels += picture.prepared.width * picture.prepared.height
        storage.save(job, kept, self._info(picture))
        storage.settle(job)

    def _kept(self, key: str, latent: Latent | None) -> Latent | Problem:
        """The latent as it is stored."""
        if latent is None:
            return Problem(key, "the network gave NaN or infinity, in float32 too")
        with np.errstate(over="ignore"):  # what overflows is refused on the next line
            kept = latent.astype(self.settings.save_dtype, copy=False)
        if not is_finite(kept):
            return Problem(key, "latents exceed float16; use --save-dtype float32")
        return kept

    def _info(self, picture: Picture) -> LatentInfo:
        prepared, architecture = picture.prepared, self.codec.architecture
        return LatentInfo(
            stae_version=__version__,
            architecture=architecture.describe(),
            weights=self.task.weights,
            weights_sha256=self.task.weights_sha256,
            downsample=architecture.downsample,
            latent_channels=architecture.channels,
            source=picture.planned.entry.key,
            source_size=picture.source.size,
            source_mtime_ns=picture.source.mtime_ns,
            source_etag=picture.source.etag,
            width=prepared.width,
            height=prepared.height,
            original_width=prepared.original_width,
            original_height=prepared.original_height,
            prep=self.settings.prep.describe(),
            compute_dtype=str(self.codec.dtype).removeprefix("torch."),
        )

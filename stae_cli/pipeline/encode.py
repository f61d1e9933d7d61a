"""Images to latents: the run behind `stae encode`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from stae_cli import __version__
from stae_cli.batching import pack
from stae_cli.errors import StaeError
from stae_cli.files.buffers import Buffers
from stae_cli.files.entries import Problem
from stae_cli.files.failures import write_failures
from stae_cli.files.latents import Latent, LatentInfo
from stae_cli.files.manifest import Manifest
from stae_cli.files.readahead import Reserve, read_ahead
from stae_cli.files.record import FILES, SHARDS, RunRecord, settle_record
from stae_cli.files.storing import Expected, FileStorage, Job, ShardStorage, Storage, Written
from stae_cli.files.writebehind import WriteBehind
from stae_cli.pipeline.encodeplan import EncodePlan
from stae_cli.pipeline.reading import READ_AHEAD_BYTES, Picture, read_picture, source_state
from stae_cli.pipeline.report import Report, problem_or
from stae_cli.pipeline.units import shard_name

if TYPE_CHECKING:
    from stae_cli.model.checkpoint import Checkpoint
    from stae_cli.model.pixels import PixelCodec

WRITE_BEHIND_BYTES = 64 << 20


def encode(
    plan: EncodePlan, checkpoint: Checkpoint, codec: PixelCodec, *, advance: Callable[[int], None]
) -> Report:
    """Encodes what the plan lists and is not done yet.

    Args:
        plan: from `plan_encode`.
        checkpoint: the weights in `codec`; its name and fingerprint are recorded.
        codec: runs the network.
        advance: called with the number of inputs that were finished, one way or another.

    Raises:
        StaeError: DEST belongs to another run, or can no longer be written to.
    """
    return _Encoding(plan, checkpoint, codec, advance).run()


class _Encoding:
    """One run's state: the plan, the network and the report."""

    def __init__(
        self,
        plan: EncodePlan,
        checkpoint: Checkpoint,
        codec: PixelCodec,
        advance: Callable[[int], None],
    ) -> None:
        self.plan, self.settings = plan, plan.settings
        self.checkpoint, self.codec = checkpoint, codec
        self.report = Report(advance, plan.settings.share)
        self.buffers = Buffers()
        self.threads = plan.settings.workers or os.cpu_count() or 1

    def run(self) -> Report:
        report, plan = self.report, self.plan
        settle_record(
            plan.destination,
            self._record(),
            is_planned=self.plan.makes,
            overwrite=self.settings.overwrite,
        )
        self._refuse_surplus()
        try:
            with report.running():
                for problem in plan.problems if self.settings.share.rank == 0 else ():
                    self._fail(problem)
                self._encode_all()
        finally:
            write_failures(plan.destination, report.problems, self.settings.share)
        return report

    def _encode_all(self) -> None:
        report = self.report
        writer: WriteBehind[Written] = WriteBehind(
            threads=self.threads,
            max_bytes=WRITE_BEHIND_BYTES,
            on_written=lambda written: report.written(written.size, written.outputs),
        )
        with closing(self._storage(writer)) as storage, writer:
            results = read_ahead(
                self._jobs(),
                lambda job, reserve: self._read(job, storage, reserve),
                threads=self.threads,
                max_bytes=READ_AHEAD_BYTES,
            )
            packs = pack(
                self._pictures(results, storage),
                patches=lambda item: item[1].patches,
                limit=self.codec.batch_patches,
            )
            for items in report.drawing(packs, "reading"):
                with report.spending("network"):
                    latents = self.codec.encode_pixels([p.prepared.pixels for _, p in items])
                with report.spending("writing"):
                    for (job, picture), latent in zip(items, latents, strict=True):
                        self._save(job, picture, latent, storage)
            with report.spending("writing"):
                writer.drain()
            if not report.interrupted:
                storage.finish()

    def _storage(self, writer: WriteBehind[Written]) -> Storage:
        settings, destination = self.settings, self.plan.destination
        expected = Expected(
            self.checkpoint.fingerprint, settings.prep.describe(), settings.save_dtype
        )
        if settings.shard_size:
            manifest = Manifest(destination, settings.share)
            return ShardStorage(
                destination, expected, writer, known=self.plan.holds, manifest=manifest
            )
        return FileStorage(destination, expected, writer)

    def _jobs(self) -> Iterator[Job | Problem]:
        for unit in self.plan.my_units():
            yield from unit.jobs(self._exists)

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
                self._fail(result)
            else:
                self.report.skip()
            if job is not None:
                storage.settle(job)

    def _fail(self, problem: Problem) -> None:
        self.report.fail(problem)
        if self.settings.strict:
            raise StaeError(
                f"{problem.key}: {problem.reason}",
                "mend or move it, or go on past failures without `--strict`",
            )

    def _save(self, job: Job, picture: Picture, latent: Latent | None, storage: Storage) -> None:
        kept = self._kept(job.planned.entry.key, latent)
        if isinstance(kept, Problem):
            self._fail(kept)
        else:
            self.report.pixels += picture.prepared.width * picture.prepared.height
            storage.save(job, kept, self._info(picture))
        storage.settle(job)

    def _kept(self, key: str, latent: Latent | None) -> Latent | Problem:
        """The latent as it is stored."""
        if latent is None:
            return Problem(key, "the network gave NaN or infinity, in float32 too")
        with np.errstate(over="ignore"):  # what overflows is refused on the next line
            kept = latent.astype(self.settings.save_dtype)
        if not np.isfinite(kept).all():
            return Problem(key, "latents exceed float16; use --save-dtype float32")
        return kept

    def _refuse_surplus(self) -> None:
        """Shards behind the last one are another run's, whose pictures would be there twice."""
        if not self.settings.shard_size:
            return
        name = shard_name("", self.plan.listed_shards)
        if self._exists(name):
            raise StaeError(
                f"`{self.plan.destination.place(name)}` is more than this run's sources need",
                "choose another DEST; or, if sources are gone for good, remove the shards of DEST",
            )

    def _exists(self, name: str) -> bool:
        try:
            self.plan.destination.entry(name).state()
        except OSError:
            return False
        return True

    def _info(self, picture: Picture) -> LatentInfo:
        prepared, architecture = picture.prepared, self.codec.architecture
        return LatentInfo(
            stae_version=__version__,
            architecture=architecture.describe(),
            weights=self.checkpoint.name,
            weights_sha256=self.checkpoint.fingerprint,
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

    def _record(self) -> RunRecord:
        return RunRecord(
            kind="latents",
            weights=self.checkpoint.name,
            weights_sha256=self.checkpoint.fingerprint,
            prep=self.settings.prep.describe(),
            output=self.settings.save_dtype,
            layout=SHARDS if self.settings.shard_size else FILES,
            shard_size=self.settings.shard_size,
        )

"""Images to latents: the run behind `stae encode`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from stae_cli import __version__
from stae_cli.batching import pack
from stae_cli.errors import InputError
from stae_cli.files.buffers import Buffers
from stae_cli.files.destination import Destination
from stae_cli.files.failures import write_failures
from stae_cli.files.images import IMAGE_SUFFIXES
from stae_cli.files.latents import (
    SUFFIX,
    ForeignFileError,
    Latent,
    LatentInfo,
    read_header,
    write_latent,
)
from stae_cli.files.prep import Prep
from stae_cli.files.readahead import Reserve, read_ahead
from stae_cli.files.record import RunRecord, settle_record
from stae_cli.files.sources import Planned, Problem, list_sources, plan_outputs
from stae_cli.files.writebehind import WriteBehind
from stae_cli.pipeline.reading import READ_AHEAD_BYTES, Picture, read_picture, source_state
from stae_cli.pipeline.report import Report, problem_or

if TYPE_CHECKING:
    from stae_cli.model.checkpoint import Checkpoint
    from stae_cli.model.pixels import PixelCodec

WRITE_BEHIND_BYTES = 64 << 20


@dataclass(frozen=True)
class EncodeSettings:
    """How a folder is encoded: what is done to the pixels, and how results are kept."""

    prep: Prep
    save_dtype: Literal["float16", "float32"] = "float16"
    keep_extension: bool = False
    overwrite: bool = False
    workers: int | None = None


@dataclass(frozen=True)
class EncodePlan:
    """Everything that is known before the network is needed."""

    outputs: Sequence[Planned]
    problems: Sequence[Problem]
    passed_over: int
    destination: Destination
    settings: EncodeSettings

    def __len__(self) -> int:
        return len(self.outputs) + len(self.problems)


def plan_encode(sources: Sequence[Path], dest: Path, settings: EncodeSettings) -> EncodePlan:
    """Finds the images, names their outputs and prepares DEST.

    Raises:
        UsageError: a missing source, DEST inside a source or a file, colliding outputs.
        StaeError: no images found, or DEST cannot be written to.
    """
    listing = list_sources(sources, dest, suffixes=IMAGE_SUFFIXES)
    outputs = plan_outputs(listing.entries, SUFFIX, keep_extension=settings.keep_extension)
    destination = Destination(dest)
    destination.prepare()
    return EncodePlan(outputs, listing.problems, listing.passed_over, destination, settings)


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
        self.report = Report(advance)
        self.buffers = Buffers()
        self.threads = plan.settings.workers or os.cpu_count() or 1

    def run(self) -> Report:
        report, destination = self.report, self.plan.destination
        settle_record(
            destination,
            self._record(),
            outputs={planned.output for planned in self.plan.outputs},
            overwrite=self.settings.overwrite,
        )
        for problem in self.plan.problems:
            report.fail(problem)
        try:
            with report.running():
                self._encode_all()
        finally:
            write_failures(destination, report.problems)
        return report

    def _encode_all(self) -> None:
        report = self.report
        writer = WriteBehind(
            threads=self.threads, max_bytes=WRITE_BEHIND_BYTES, on_written=report.written
        )
        with writer:
            results = read_ahead(
                self.plan.outputs, self._read, threads=self.threads, max_bytes=READ_AHEAD_BYTES
            )
            packs = pack(
                report.sift(results),
                patches=lambda picture: picture.patches,
                limit=self.codec.batch_patches,
            )
            for pictures in report.drawing(packs, "reading"):
                with report.spending("network"):
                    latents = self.codec.encode_pixels([p.prepared.pixels for p in pictures])
                with report.spending("writing"):
                    for picture, latent in zip(pictures, latents, strict=True):
                        self._save(picture, latent, writer)
            with report.spending("writing"):
                writer.drain()

    def _read(self, planned: Planned, reserve: Reserve) -> Picture | Problem | None:
        """Runs in a reading thread; None means that the output is there already."""

        def read() -> Picture | None:
            if not self.settings.overwrite and self._is_done(planned, source_state(planned)):
                return None
            return read_picture(
                planned,
                self.settings.prep,
                patch=self.codec.architecture.downsample,
                reserve=reserve,
                buffers=self.buffers,
            )

        return problem_or(planned.entry.key, read)

    def _is_done(self, planned: Planned, source: os.stat_result) -> bool:
        """Whether the output is whole and was made from this source with these settings.

        Raises:
            InputError: another program's file is in its place.
        """
        path = self.plan.destination.path(planned.output)
        try:
            header = read_header(path)
        except ForeignFileError as error:
            raise InputError(
                f"its output `{path}` exists and is {error.message}; "
                "move it, or replace it with --overwrite"
            ) from error
        except InputError:  # absent or damaged: done anew
            return False
        info = header.info
        return (
            info.weights_sha256 == self.checkpoint.fingerprint
            and info.prep == self.settings.prep.describe()
            and header.dtype == self.settings.save_dtype
            and info.source == planned.entry.key
            and (info.source_size, info.source_mtime_ns) == (source.st_size, source.st_mtime_ns)
        )

    def _save(self, picture: Picture, latent: Latent | None, writer: WriteBehind) -> None:
        key = picture.planned.entry.key
        if latent is None:
            self.report.fail(Problem(key, "the network gave NaN or infinity, in float32 too"))
            return
        with np.errstate(over="ignore"):  # what overflows is refused on the next line
            kept = latent.astype(self.settings.save_dtype)
        if not np.isfinite(kept).all():
            self.report.fail(Problem(key, "latents exceed float16; use --save-dtype float32"))
            return
        info, output = self._info(picture), picture.planned.output

        def write() -> int:
            with self.plan.destination.writing(output) as path:
                return write_latent(path, kept, info)

        self.report.pixels += picture.prepared.width * picture.prepared.height
        writer.submit(kept.nbytes, write)

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
            source_size=picture.source.st_size,
            source_mtime_ns=picture.source.st_mtime_ns,
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
        )

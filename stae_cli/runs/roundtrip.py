"""Images to reconstructions beside them: the run behind `stae roundtrip`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stae_cli.flow.batching import pack
from stae_cli.flow.read_ahead import Reserve, read_ahead
from stae_cli.flow.write_behind import WriteBehind
from stae_cli.images.buffers import Buffers, Pixels
from stae_cli.images.comparison import comparison
from stae_cli.images.read import IMAGE_SUFFIXES
from stae_cli.images.resize import Prep
from stae_cli.images.write import write_picture
from stae_cli.latents.failures import write_failures
from stae_cli.latents.format import is_finite
from stae_cli.metrics import Overall, Score, compare, overall
from stae_cli.runs.read_picture import READ_AHEAD_BYTES, Picture, read_picture
from stae_cli.runs.tally import Report, problem_or
from stae_cli.storage.destination import Destination
from stae_cli.storage.entry import Problem
from stae_cli.storage.names import Planned, plan_outputs
from stae_cli.storage.remote_destination import local_folder
from stae_cli.storage.sources import list_sources

if TYPE_CHECKING:
    from stae_cli.checkpoints.checkpoint import Checkpoint
    from stae_cli.codec.pixel_codec import PixelCodec

WRITE_BEHIND_BYTES = 256 << 20
METRICS_NAME = "metrics.json"


@dataclass(frozen=True)
class RoundtripSettings:
    """How images are prepared, and by how many threads files are read and written."""

    prep: Prep
    workers: int | None = None


@dataclass(frozen=True)
class RoundtripPlan:
    """Everything that is known before the network is needed."""

    outputs: Sequence[Planned]
    problems: Sequence[Problem]
    passed_over: int
    destination: Destination
    settings: RoundtripSettings

    @property
    def total(self) -> int:
        """How many inputs there are."""
        return len(self.outputs) + len(self.problems)


@dataclass(frozen=True)
class Scored:
    """One image's key, the size that was compared, and its figures."""

    key: str
    width: int
    height: int
    score: Score


@dataclass
class RoundtripReport(Report):
    """What a run did, with the figures of each image."""

    scored: list[Scored] = field(default_factory=list)

    @property
    def overall(self) -> Overall | None:
        """Figures over all images; None when there are none."""
        return overall([one.score for one in self.scored]) if self.scored else None


def plan_roundtrip(
    sources: Sequence[Path | str], dest: Path | str, settings: RoundtripSettings
) -> RoundtripPlan:
    """Finds the images, names their outputs by their whole keys, and prepares DEST.

    Raises:
        UsageError: a missing source, DEST inside a source or a file, colliding outputs.
        StaeError: no images found, or DEST cannot be written to.
    """
    destination = local_folder(dest)
    listing = list_sources(sources, dest, suffixes=IMAGE_SUFFIXES)
    outputs = plan_outputs(listing.entries, "", keep_extension=True)
    destination.prepare()
    return RoundtripPlan(outputs, listing.problems, listing.passed_over, destination, settings)


def roundtrip(
    plan: RoundtripPlan,
    checkpoint: Checkpoint,
    codec: PixelCodec,
    *,
    advance: Callable[[int], None],
) -> RoundtripReport:
    """Encodes and decodes every image, and writes pictures and metrics.

    Latents pass through float16, as they would on disk, so that the figures are those of
    `stae encode` and `stae decode`.

    Args:
        plan: from `plan_roundtrip`.
        checkpoint: the weights in `codec`; its name and fingerprint are recorded.
        codec: runs the network.
        advance: called with the number of inputs that were finished, one way or another.

    Raises:
        StaeError: DEST can no longer be written to.
    """
    report = RoundtripReport(advance)
    for problem in plan.problems:
        report.fail(problem)
    try:
        with report.running():
            _Roundtrip(plan, codec, report).run()
            if not report.interrupted:
                _write_metrics(plan, checkpoint, codec, report)
    finally:
        write_failures(plan.destination, report.problems, report.share)
    return report


class _Roundtrip:
    """One run's state: the plan, the network and the report."""

    def __init__(self, plan: RoundtripPlan, codec: PixelCodec, report: RoundtripReport) -> None:
        self.plan, self.codec, self.report = plan, codec, report
        self.threads = plan.settings.workers or os.cpu_count() or 1
        self.patch = codec.architecture.downsample
        self.buffers = Buffers(codec.host_memory)

    def run(self) -> None:
        report = self.report
        writer = WriteBehind(
            threads=self.threads, max_bytes=WRITE_BEHIND_BYTES, on_written=report.written
        )
        ahead = read_ahead(
            self.plan.outputs, self._read, threads=self.threads, max_bytes=READ_AHEAD_BYTES
        )
        with writer, closing(ahead) as results:
            packs = pack(
                report.sift(results),
                patches=lambda picture: picture.patches,
                limit=self.codec.batch_patches,
            )
            for pictures in report.drawing(packs, "reading"):
                with report.spending("network"):
                    reconstructions = self._reconstructed(pictures)
                with report.spending("writing"):
                    for picture, pixels in zip(pictures, reconstructions, strict=True):
                        self._save(picture, pixels, writer)
            with report.spending("writing"):
                writer.drain()
        report.scored.sort(key=lambda one: one.key)  # the threads end in any order

    def _read(self, planned: Planned, reserve: Reserve) -> Picture | Problem:
        """Runs in a reading thread."""
        prep = self.plan.settings.prep
        return problem_or(
            planned.entry.key,
            lambda: read_picture(
                planned, prep, patch=self.patch, reserve=reserve, buffers=self.buffers
            ),
        )

    def _reconstructed(self, pictures: Sequence[Picture]) -> list[Pixels | None]:
        """None where the latent or the picture is not finite in the form it would be stored."""
        latents = self.codec.encode_pixels([picture.prepared.pixels for picture in pictures])
        results: list[Pixels | None] = [None] * len(pictures)
        with np.errstate(over="ignore"):
            halves = [None if z is None else z.astype(np.float16) for z in latents]
        good = [i for i, half in enumerate(halves) if half is not None and is_finite(half)]
        decoded = self.codec.decode_pixels([half for i in good if (half := halves[i]) is not None])
        for index, pixels in zip(good, decoded, strict=True):
            results[index] = pixels
        return results

    def _save(self, picture: Picture, pixels: Pixels | None, writer: WriteBehind[int]) -> None:
        planned, prepared = picture.planned, picture.prepared
        if pixels is None:
            reason = "the network gave NaN or infinity, or latents that exceed float16"
            self.report.fail(Problem(planned.entry.key, reason))
            return
        original = prepared.pixels[: prepared.height, : prepared.width]
        reconstruction = pixels[: prepared.height, : prepared.width]

        def write() -> int:
            score = compare(original, reconstruction)
            size = self._write(f"{planned.output}.reconstruction.png", reconstruction)
            panels = comparison(original, reconstruction)
            size += self._write(f"{planned.output}.comparison.png", panels)
            self.report.scored.append(
                Scored(planned.entry.key, prepared.width, prepared.height, score)
            )
            return size

        self.report.pixels += prepared.width * prepared.height
        writer.submit(4 * pixels.nbytes, write)  # the original and the panels are held too

    def _write(self, name: str, pixels: Pixels) -> int:
        with self.plan.destination.writing(name) as path:
            write_picture(path, pixels, format="png", record="{}")
            return path.stat().st_size


def _write_metrics(
    plan: RoundtripPlan, checkpoint: Checkpoint, codec: PixelCodec, report: RoundtripReport
) -> None:
    figures: dict[str, Any] = {
        "weights": checkpoint.name,
        "weights_sha256": checkpoint.fingerprint,
        "prep": plan.settings.prep.describe(),
        "compute_dtype": str(codec.dtype).removeprefix("torch."),
        "overall": report.overall.as_json() if report.overall else None,
        "images": [
            {"source": one.key, "width": one.width, "height": one.height, **one.score.as_json()}
            for one in report.scored
        ],
        "failed": [{"source": p.key, "reason": p.reason} for p in report.problems],
    }
    with plan.destination.writing(METRICS_NAME) as path:
        path.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n", encoding="utf-8")

"""Images to reconstructions and figures: the run behind `stae roundtrip`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stae_cli.cores import usable_cores
from stae_cli.flow.read_ahead import Reserve
from stae_cli.images.buffers import Buffers, Pixels
from stae_cli.images.comparison import comparison
from stae_cli.images.plugins import REMEDIES
from stae_cli.images.read import IMAGE_SUFFIXES
from stae_cli.images.resize import Prep
from stae_cli.images.write import write_picture
from stae_cli.latents.failures import write_failures
from stae_cli.latents.format import Latent, is_finite
from stae_cli.latents.writer import Written
from stae_cli.metrics import Overall, Score, compare, overall
from stae_cli.runs.pipeline import Pipeline
from stae_cli.runs.read_picture import Picture, read_picture
from stae_cli.runs.tally import Tally
from stae_cli.storage.destination import Destination
from stae_cli.storage.entry import Problem
from stae_cli.storage.names import EXACT, Planned, plan_outputs
from stae_cli.storage.remote_destination import local_folder
from stae_cli.storage.sources import list_sources

if TYPE_CHECKING:
    from stae_cli.checkpoints.checkpoint import Checkpoint
    from stae_cli.codec.pixel_codec import PixelCodec

METRICS_NAME = "metrics.json"


@dataclass(frozen=True)
class RoundtripSettings:
    """How images are prepared; `workers` threads read, and as many write."""

    prep: Prep
    workers: int | None = None


@dataclass(frozen=True)
class RoundtripPlan:
    """Everything that is known before the network is needed."""

    outputs: Sequence[Planned]
    problems: Sequence[Problem]
    passed_over: Counter[str]
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
class RoundtripTally(Tally):
    """The tally of a run, with the figures of each image."""

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
    listing = list_sources(sources, dest, suffixes=IMAGE_SUFFIXES, remedies=REMEDIES)
    outputs = plan_outputs(listing.entries, "", keep_extension=True)
    destination.prepare()
    if (rules := destination.rules) != EXACT:
        outputs = plan_outputs(listing.entries, "", keep_extension=True, rules=rules)
    return RoundtripPlan(outputs, listing.problems, listing.passed_over, destination, settings)


def roundtrip(
    plan: RoundtripPlan,
    checkpoint: Checkpoint,
    codec: PixelCodec,
    *,
    advance: Callable[[int], None],
) -> RoundtripTally:
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
    tally = RoundtripTally(advance)
    for problem in plan.problems:
        tally.fail(problem)
    try:
        with tally.running():
            _Roundtrip(plan, codec, tally).run(plan.outputs)
            tally.scored.sort(key=lambda one: one.key)  # the threads end in any order
            if not tally.interrupted:
                _write_metrics(plan, checkpoint, codec, tally)
    finally:
        write_failures(plan.destination, tally.problems, tally.share, roots=())
        plan.destination.finish()
    return tally


class _Roundtrip(Pipeline[Planned, Picture, Pixels | None]):
    """The encoding and decoding of a run's images."""

    def __init__(self, plan: RoundtripPlan, codec: PixelCodec, tally: RoundtripTally) -> None:
        super().__init__(codec, tally, threads=plan.settings.workers or usable_cores())
        self.plan, self.scored = plan, tally.scored
        self.buffers = Buffers(codec.host_memory)

    def label(self, item: Planned) -> str:
        return item.entry.key

    def read(self, item: Planned, reserve: Reserve) -> Picture:
        return read_picture(
            item.entry,
            self.plan.settings.prep,
            patch=self.codec.architecture.downsample,
            reserve=reserve,
            buffers=self.buffers,
        )

    def patches(self, loaded: Picture) -> int:
        return loaded.patches

    def begin(self, pack: Sequence[Picture]) -> Callable[[], Sequence[Pixels | None]]:
        encoded = self.codec.begin_encoding([picture.prepared.pixels for picture in pack])
        return lambda: self._decoded(encoded())

    def _decoded(self, latents: Sequence[Latent | None]) -> list[Pixels | None]:
        """None where the latent or the picture is not finite in the form it would be stored."""
        results: list[Pixels | None] = [None] * len(latents)
        with np.errstate(over="ignore"):
            halves = [None if z is None else z.astype(np.float16) for z in latents]
        good = {i: half for i, half in enumerate(halves) if half is not None and is_finite(half)}
        decoded = self.codec.decode_pixels(list(good.values()))
        for index, pixels in zip(good, decoded, strict=True):
            results[index] = pixels
        return results

    def save(self, item: Planned, loaded: Picture, result: Pixels | None) -> None:
        if result is None:
            self.fail(item, "the network gave NaN or infinity, or latents that exceed float16")
            return
        prepared = loaded.prepared
        original = prepared.pixels[: prepared.height, : prepared.width]
        reconstruction = result[: prepared.height, : prepared.width]

        def write() -> Written:
            with self.writer.turn:
                score = compare(original, reconstruction)
                panels = comparison(original, reconstruction)
            size = self._write(f"{item.output}.reconstruction.png", reconstruction)
            size += self._write(f"{item.output}.comparison.png", panels)
            self.scored.append(Scored(item.entry.key, prepared.width, prepared.height, score))
            return Written(1, size)

        self.tally.pixels += prepared.width * prepared.height
        self.writer.submit(4 * result.nbytes, write)  # the original and the panels are held too

    def _write(self, name: str, pixels: Pixels) -> int:
        with self.plan.destination.writing(name, self.writer.turn) as path:
            write_picture(path, pixels, format="png", record="{}")
            return path.stat().st_size


def _write_metrics(
    plan: RoundtripPlan, checkpoint: Checkpoint, codec: PixelCodec, tally: RoundtripTally
) -> None:
    figures: dict[str, Any] = {
        "weights": checkpoint.name,
        "weights_sha256": checkpoint.fingerprint,
        "prep": plan.settings.prep.describe(),
        "compute_dtype": str(codec.dtype).removeprefix("torch."),
        "overall": tally.overall.as_json() if tally.overall else None,
        "images": [
            {"source": one.key, "width": one.width, "height": one.height, **one.score.as_json()}
            for one in tally.scored
        ],
        "failed": [{"source": p.key, "reason": p.reason} for p in tally.problems],
    }
    with plan.destination.writing(METRICS_NAME) as path:
        path.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n", encoding="utf-8")

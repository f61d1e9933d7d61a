"""Images to reconstructions and figures: the run behind `stae roundtrip`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from stae_cli.cores import usable_cores
from stae_cli.flow.read_ahead import Reserve
from stae_cli.images.buffers import Buffers, Pixels
from stae_cli.images.comparison import comparison, panels_size
from stae_cli.images.write import write_picture, write_thumbnail
from stae_cli.latents.failures import write_failures
from stae_cli.latents.writer import Written
from stae_cli.metrics import compare
from stae_cli.report.page import ORIGINAL, THUMBNAIL
from stae_cli.runs.autoencoders import Autoencoder, OwnAutoencoder
from stae_cli.runs.pipeline import Pipeline
from stae_cli.runs.read_picture import Picture, read_picture
from stae_cli.runs.roundtrip_plan import RoundtripPlan, RoundtripTally, Scored, remove_earlier
from stae_cli.runs.roundtrip_report import write_metrics, write_page
from stae_cli.storage.names import Planned

if TYPE_CHECKING:
    from stae_cli.codec.pixel_codec import PixelCodec


def roundtrip(
    plan: RoundtripPlan,
    autoencoders: Sequence[Autoencoder],
    codec: PixelCodec,
    *,
    command: str,
    advance: Callable[[int], None],
) -> RoundtripTally:
    """Encodes and decodes every image, and writes pictures, metrics and a page that shows them.

    Latents pass through float16, as they would on disk, so that the figures are those of
    `stae encode` and `stae decode`. An image that one of several autoencoders cannot do is listed
    as failed, so that all figures are of the same images.

    Args:
        plan: from `plan_roundtrip`.
        autoencoders: at least one.
        codec: of the first one; it bounds how much is computed at once.
        command: what the page says it was made with.
        advance: called with the number of inputs that were finished, one way or another.

    Raises:
        StaeError: DEST can no longer be written to.
    """
    tally = RoundtripTally(advance)
    for problem in plan.problems:
        tally.fail(problem)
    remove_earlier(plan.destination)
    try:
        with tally.running():
            _Roundtrip(plan, autoencoders, codec, tally).run(plan.outputs)
            tally.scored.sort(key=lambda one: one.key)  # the threads end in any order
        with tally.running():
            write_metrics(plan, autoencoders, tally)
            write_page(plan, autoencoders, codec, tally, command=command)
    finally:
        write_failures(plan.destination, tally.problems, tally.share, roots=())
        plan.destination.finish()
    return tally


class _Roundtrip(Pipeline[Planned, Picture, Sequence[Pixels | str]]):
    """The encoding and decoding of a run's images."""

    def __init__(
        self,
        plan: RoundtripPlan,
        autoencoders: Sequence[Autoencoder],
        codec: PixelCodec,
        tally: RoundtripTally,
    ) -> None:
        super().__init__(codec, tally, threads=plan.settings.workers or usable_cores())
        self.plan, self.autoencoders, self.scored = plan, autoencoders, tally.scored
        self.buffers = Buffers(codec.host_memory)
        own = [each.downsample for each in autoencoders if isinstance(each, OwnAutoencoder)]
        # Each pads for itself; what is cut has to be the same for all.
        self.patch = own[0] if plan.settings.prep.edges == "pad" else math.lcm(*own)

    def label(self, item: Planned) -> str:
        return item.entry.key

    def read(self, item: Planned, reserve: Reserve) -> Picture:
        return read_picture(
            item.entry,
            self.plan.settings.prep,
            patch=self.patch,
            reserve=reserve,
            buffers=self.buffers,
        )

    def patches(self, loaded: Picture) -> int:
        return loaded.patches

    def begin(self, pack: Sequence[Picture]) -> Callable[[], Sequence[Sequence[Pixels | str]]]:
        pictures = [picture.prepared for picture in pack]
        first = self.autoencoders[0].begin(pictures)

        def finish() -> Sequence[Sequence[Pixels | str]]:
            made = [first(), *(other.begin(pictures)() for other in self.autoencoders[1:])]
            return list(zip(*made, strict=True))

        return finish

    def save(self, item: Planned, loaded: Picture, result: Sequence[Pixels | str]) -> None:
        prepared = loaded.prepared
        pictures: list[Pixels] = []
        for autoencoder, made in zip(self.autoencoders, result, strict=True):
            if isinstance(made, str):
                several = len(self.autoencoders) > 1
                self.fail(item, f"{autoencoder.name}: {made}" if several else made)
                return
            pictures.append(made)
        original = prepared.pixels[: prepared.height, : prepared.width]

        suffixes = self.plan.settings.suffixes

        def write() -> Written:
            size = self._write(item, ORIGINAL, original)
            size += self._write_thumbnail(item, original)
            scores = []
            for pixels, (suffix, panels_suffix) in zip(pictures, suffixes, strict=True):
                with self.writer.turn:
                    scores.append(compare(original, pixels))
                    panels = comparison(original, pixels)
                size += self._write(item, suffix, pixels)
                size += self._write(item, panels_suffix, panels)
            self.scored.append(Scored(item.entry.key, prepared.width, prepared.height, scores))
            return Written(1, size)

        self.tally.pixels += prepared.width * prepared.height
        held = (1 + len(pictures)) * original.nbytes + panels_size(prepared.width, prepared.height)
        self.writer.submit(held, write)

    def _write(self, item: Planned, suffix: str, pixels: Pixels) -> int:
        with self.plan.destination.writing(f"{item.output}.{suffix}", self.writer.turn) as path:
            write_picture(path, pixels, format="png", record="{}")
            return path.stat().st_size

    def _write_thumbnail(self, item: Planned, original: Pixels) -> int:
        with self.plan.destination.writing(f"{item.output}.{THUMBNAIL}", self.writer.turn) as path:
            write_thumbnail(path, original)
            return path.stat().st_size

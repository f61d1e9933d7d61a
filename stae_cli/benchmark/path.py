"""The path stage by stage: how fast reading, the network and writing are alone, and together."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from stae_cli.cores import usable_cores
from stae_cli.errors import InputError, StaeError
from stae_cli.flow.read_ahead import READ_AHEAD_BYTES, Reserve, read_ahead
from stae_cli.flow.write_behind import WriteBehind
from stae_cli.images.buffers import Buffers, Pixels
from stae_cli.images.read import open_image
from stae_cli.images.resize import Prep
from stae_cli.images.write import write_picture
from stae_cli.latents.format import Latent, StoredLatent, write_latent
from stae_cli.latents.listing import read_latent
from stae_cli.runs.decode import DecodeSettings, decode, plan_decode
from stae_cli.runs.encode import encode
from stae_cli.runs.encode_plan import EncodeSettings, plan_encode
from stae_cli.runs.pipeline import Pipeline, computed, packed
from stae_cli.runs.read_picture import patches_of, read_picture
from stae_cli.runs.tally import Tally
from stae_cli.runs.units import listed_units
from stae_cli.runs.workers import ThisProcess
from stae_cli.storage.destination import FolderDestination
from stae_cli.storage.entry import FileEntry
from stae_cli.storage.names import Planned

if TYPE_CHECKING:
    from stae_cli.checkpoints.checkpoint import Checkpoint
    from stae_cli.codec.pixel_codec import PixelCodec

Item = TypeVar("Item")
Source = TypeVar("Source", Planned, StoredLatent)
Result = TypeVar("Result")

STAGES = ("reading", "network", "writing")
WHOLE = "whole"
SAMPLE_PIXELS = {"cpu": 16_000_000}  # about a minute on two cores
ACCELERATED_PIXELS = 256_000_000  # held in memory


@dataclass(frozen=True)
class PathTimes:
    """Seconds that `encode` or `decode` took for the same pictures, whole and stage by stage."""

    command: str
    images: int
    pixels: int
    threads: int
    seconds: Mapping[str, float]

    @property
    def bound(self) -> str:
        """The stage that is slowest alone."""
        return max(STAGES, key=lambda stage: self.seconds[stage])


def time_path(
    sources: Sequence[Path],
    checkpoint: Checkpoint,
    codec: PixelCodec,
    *,
    workers: int | None,
    folder: Path,
) -> list[PathTimes]:
    """Times encoding and decoding of a sample of the images, whole and stage by stage.

    Files come from the disk, not from memory, where the system lets us ask for that.

    Args:
        sources: files or folders.
        checkpoint: the weights in `codec`.
        codec: runs the network.
        workers: reading threads, and as many writing ones; one per core by default.
        folder: empty; results are written to it, and stay.

    Raises:
        UsageError: a missing source.
        StaeError: no sound image was found, or the folder cannot be written to.
    """
    plan = plan_encode(sources, folder / "latents", EncodeSettings(Prep(), workers=workers))
    limit = SAMPLE_PIXELS.get(codec.device.type, ACCELERATED_PIXELS)
    sample, pixels = _sampled(plan.outputs, limit)
    units = listed_units(sample, plan.settings.layout, gaps={}, orphans={})
    plan = replace(plan, outputs=sample, units=units, tars=(), problems=())
    stages = _Stages(codec, workers or usable_cores(), folder)
    whole = _whole(sample, lambda: encode(plan, checkpoint, ThisProcess(codec), advance=_ignored))
    encoding = {**stages.encoding(sample, folder / "latents" / sample[0].output), WHOLE: whole}
    latents = plan_decode([folder / "latents"], folder / "out", DecodeSettings(workers=workers))
    stored = [latent for latent in latents.latents if isinstance(latent, StoredLatent)]  # all
    whole = _whole(stored, lambda: decode(latents, ThisProcess(codec), advance=_ignored))
    decoding = {**stages.decoding(stored), WHOLE: whole}
    return [
        PathTimes(command, len(sample), pixels, stages.threads, seconds)
        for command, seconds in (("encode", encoding), ("decode", decoding))
    ]


class _Stages:
    """Runs the stages one after another on the same pictures, held in memory in between."""

    def __init__(self, codec: PixelCodec, threads: int, folder: Path) -> None:
        self.codec, self.threads = codec, threads
        self.patch = codec.architecture.downsample
        self.destination = FolderDestination(folder / "alone")
        self.destination.prepare()
        tiny = Buffers().take(4 * self.patch, 4 * self.patch)
        codec.decode_pixels([z for z in codec.encode_pixels([tiny]) if z is not None])  # warms up

    def encoding(self, sample: Sequence[Planned], example: Path) -> dict[str, float]:
        """Seconds of reading images, encoding them, and writing their latents like `example`."""
        buffers, info = Buffers(self.codec.host_memory), read_latent(example)[1]

        def read(planned: Planned, reserve: Reserve) -> Pixels:
            picture = read_picture(
                planned.entry, Prep(), patch=self.patch, reserve=reserve, buffers=buffers
            )
            return picture.prepared.pixels

        def write(path: Path, latent: Latent) -> int:
            return write_latent(path, latent.astype(np.float16), info)

        pictures, reading = self._read(sample, read)
        packs = packed(pictures, patches=patches_of, limit=self.codec.batch_patches)
        latents, network = self._computed(packs, self.codec.begin_encoding)
        return _by_stage(reading, network, self._written(latents, write))

    def decoding(self, sample: Sequence[StoredLatent]) -> dict[str, float]:
        """Seconds of reading latents, decoding them, and writing PNGs."""

        def read(item: StoredLatent, _reserve: Reserve) -> Latent:
            return item.read()

        def write(path: Path, pixels: Pixels) -> int:
            write_picture(path, pixels, format="png", record="{}")
            return pixels.nbytes

        latents, reading = self._read(sample, read)
        units = self.codec.architecture.units
        packs = packed(
            latents, patches=lambda latent: units * latent[0].size, limit=self.codec.batch_patches
        )
        pictures, network = self._computed(packs, self.codec.begin_decoding)
        return _by_stage(reading, network, self._written(pictures, write))

    def _read(
        self, sample: Sequence[Source], read: Callable[[Source, Reserve], Item]
    ) -> tuple[list[Item], float]:
        _forget(sample)
        ahead = read_ahead(sample, read, threads=self.threads, max_bytes=READ_AHEAD_BYTES)
        return _timed(lambda: list(ahead))

    def _computed(
        self,
        packs: Iterable[list[Item]],
        begin: Callable[[list[Item]], Callable[[], list[Result | None]]],
    ) -> tuple[list[Result], float]:
        done = computed(packs, begin, Tally(_ignored), ahead=self.codec.runs_beside)
        return _timed(lambda: [one for _, pack in done for one in pack if one is not None])

    def _written(self, items: Sequence[Item], write: Callable[[Path, Item], int]) -> float:
        writer = WriteBehind(
            threads=self.threads, max_bytes=Pipeline.write_bytes, on_written=_ignored
        )

        def run() -> None:
            with writer:
                for index, item in enumerate(items):
                    writer.submit(1, partial(self._write_one, index, item, write, writer.turn))

        return _timed(run)[1]

    def _write_one(
        self,
        index: int,
        item: Item,
        write: Callable[[Path, Item], int],
        turn: AbstractContextManager[object],
    ) -> int:
        with self.destination.writing(str(index), turn) as path:
            return write(path, item)


def _by_stage(reading: float, network: float, writing: float) -> dict[str, float]:
    return dict(zip(STAGES, (reading, network, writing), strict=True))


def _whole(sample: Sequence[Planned | StoredLatent], run: Callable[[], object]) -> float:
    _forget(sample)
    return _timed(run)[1]


def _timed(run: Callable[[], Result]) -> tuple[Result, float]:
    """The result, and the seconds that it took."""
    started = time.perf_counter()
    result = run()
    return result, time.perf_counter() - started


def _sampled(outputs: Sequence[Planned], limit: int) -> tuple[list[Planned], int]:
    """Sound images from all over the plan, in its order, of about `limit` pixels in all."""
    sample: set[int] = set()
    pixels = 0
    for index in random.Random(0).sample(range(len(outputs)), len(outputs)):  # noqa: S311
        size = _pixels_of(outputs[index])
        if size and (not sample or pixels + size <= limit):
            sample.add(index)
            pixels += size
        if pixels >= 0.9 * limit:
            break
    if not sample:
        raise StaeError("none of the images can be read", "`stae encode` says why")
    return [outputs[index] for index in sorted(sample)], pixels


def _pixels_of(planned: Planned) -> int:
    """Zero if it is not a sound image."""
    try:
        with planned.entry.open() as file:
            pixels = open_image(file, name=planned.entry.key).pixels()
    except (InputError, OSError):
        return 0
    return pixels.shape[0] * pixels.shape[1]


def _forget(items: Sequence[Planned | StoredLatent]) -> None:
    """Asks the system to drop the files from its cache, so that they are read again."""
    for item in items if hasattr(os, "posix_fadvise") else ():
        entry = item.file if isinstance(item, StoredLatent) else item.entry
        if isinstance(entry, FileEntry):
            with entry.path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _ignored(_value: object) -> None:
    pass

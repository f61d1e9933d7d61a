"""Latents to pictures, in this process: what a decode run does in each of its."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stae_cli.errors import InputError
from stae_cli.flow.batching import pack
from stae_cli.flow.read_ahead import Reserve, read_ahead
from stae_cli.flow.write_behind import WriteBehind
from stae_cli.images.buffers import Pixels
from stae_cli.images.write import LONGEST_SIDE, read_picture_record, write_picture
from stae_cli.latents.format import SUFFIX, Latent, LatentInfo, StoredLatent, is_finite
from stae_cli.latents.run_record import NO_PREP, RunRecord
from stae_cli.runs.ahead import computed
from stae_cli.runs.decode_plan import Decodable, DecodeSettings
from stae_cli.runs.tally import Report, problem_or
from stae_cli.storage.destination import FolderDestination
from stae_cli.storage.entry import Problem

if TYPE_CHECKING:
    from stae_cli.codec.pixel_codec import PixelCodec

READ_AHEAD_BYTES = 64 << 20
WRITE_BEHIND_BYTES = 256 << 20


@dataclass(frozen=True)
class DecodeTask:
    """What each process of a run knows, whichever latents it decodes; it can be pickled.

    `weights` and `weights_sha256` name the checkpoint that made all of them.
    """

    destination: FolderDestination
    settings: DecodeSettings
    weights: str
    weights_sha256: str

    @property
    def record(self) -> RunRecord:
        """What DEST says of all its pictures."""
        return RunRecord(
            kind="pictures",
            weights=self.weights,
            weights_sha256=self.weights_sha256,
            prep=NO_PREP,
            output=self.settings.format,
        )

    @property
    def strict(self) -> bool:
        """Whether the first failure is the end: never."""
        return False

    def do(self, part: Sequence[Decodable], codec: PixelCodec, report: Report) -> bytes:
        """Decodes some latents; raises what `decode_latents` raises."""
        decode_latents(self, part, codec, report)
        return b""


def decode_latents(
    task: DecodeTask, items: Sequence[Decodable], codec: PixelCodec, report: Report
) -> None:
    """Decodes what is not done yet, and counts it in `report`.

    Args:
        task: of the run, whose DEST is prepared and has its record.
        items: latents of the run.
        codec: runs the network, with the task's weights.
        report: of these latents.

    Raises:
        StaeError: DEST can no longer be written to.
    """
    _Decoding(task, codec, report).run(items)


@dataclass(frozen=True)
class _Loaded:
    """One latent, read, and the record to embed in its picture."""

    item: Decodable
    latent: Latent
    record: str


class _Decoding:
    """The state of some latents' decoding."""

    def __init__(self, task: DecodeTask, codec: PixelCodec, report: Report) -> None:
        self.task, self.settings = task, task.settings
        self.codec, self.report = codec, report
        self.threads = task.settings.workers or os.cpu_count() or 1

    def run(self, items: Sequence[Decodable]) -> None:
        report = self.report
        writer = WriteBehind(
            threads=self.threads, max_bytes=WRITE_BEHIND_BYTES, on_written=report.written
        )
        ahead = read_ahead(items, self._read, threads=self.threads, max_bytes=READ_AHEAD_BYTES)
        with writer, closing(ahead) as results:
            units = self.codec.architecture.units
            packs = pack(
                report.sift(results),
                patches=lambda loaded: units * loaded.latent[0].size,
                limit=self.codec.batch_patches,
            )
            for members, pictures in computed(
                packs, self._begun, report, ahead=self.codec.runs_beside
            ):
                with report.spending("writing"):
                    for loaded, pixels in zip(members, pictures, strict=True):
                        self._save(loaded, pixels, writer)
            with report.spending("writing"):
                writer.drain()

    def _begun(self, members: Sequence[_Loaded]) -> Callable[[], list[Pixels | None]]:
        return self.codec.begin_decoding([loaded.latent for loaded in members])

    def _read(self, item: Decodable, reserve: Reserve) -> _Loaded | Problem | None:
        """Runs in a reading thread; None means that the picture is there already."""
        return problem_or(item.stored.label, lambda: self._load(item, reserve))

    def _load(self, item: Decodable, reserve: Reserve) -> _Loaded | None:
        stored = item.stored
        if stored.file.state() != stored.state:
            raise InputError("it changed while the run was under way")
        record = self._picture_record(stored)
        if not self.settings.overwrite and self._is_done(item, record):
            return None
        reserve(stored.size)
        latent = stored.read()
        self._check_latent(latent, stored.info)
        return _Loaded(item, latent, record)

    def _check_latent(self, latent: Latent, info: LatentInfo) -> None:
        sizes = self.codec.architecture
        numbers = (info.downsample, info.latent_channels) == (sizes.downsample, sizes.channels)
        if not (numbers and sizes.is_named(info.architecture)):
            raise InputError(
                f"damaged: it says {info.architecture}, {info.latent_channels} channels at "
                f"1/{info.downsample}, but its weights are a {sizes.describe()}"
            )
        if not is_finite(latent):
            raise InputError("it holds NaN or infinity")
        longest = LONGEST_SIDE[self.settings.format]
        if max(info.width, info.height) > longest:
            raise InputError(
                f"{info.width}x{info.height} exceeds the {longest} pixels of a "
                f"{self.settings.format} side; use --format png"
            )

    def _is_done(self, item: Decodable, record: str) -> bool:
        """Whether the picture is whole and was made from this latent.

        Raises:
            InputError: another program's file is in its place.
        """
        path = self.task.destination.path(item.output)
        found = read_picture_record(path)
        if found is None and path.exists() and path.stat().st_size:
            raise InputError(
                f"its output `{path}` exists and is no whole picture of stae; "
                "move it, or replace it with --overwrite"
            )
        return found == record

    def _save(self, loaded: _Loaded, pixels: Pixels | None, writer: WriteBehind[int]) -> None:
        if pixels is None:
            reason = "the network gave NaN or infinity, in float32 too"
            self.report.fail(Problem(loaded.item.stored.label, reason))
            return
        picture = pixels[: loaded.item.stored.info.height, : loaded.item.stored.info.width]
        output = loaded.item.output

        def write() -> int:
            with self.task.destination.writing(output) as path:
                write_picture(path, picture, format=self.settings.format, record=loaded.record)
                return path.stat().st_size

        self.report.pixels += loaded.item.stored.info.width * loaded.item.stored.info.height
        writer.submit(pixels.nbytes, write)

    def _picture_record(self, stored: StoredLatent) -> str:
        """What a picture says of itself; one that says the same need not be made again."""
        record = {
            "latents": f"{stored.key}{SUFFIX}",
            "latents_mtime_ns": stored.state.mtime_ns,
            "latents_size": stored.state.size,
            "weights_sha256": stored.info.weights_sha256,
        }
        if stored.state.etag:
            record["latents_etag"] = stored.state.etag
        return json.dumps(record, sort_keys=True)

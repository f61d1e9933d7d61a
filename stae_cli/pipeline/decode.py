"""Latents to pictures: the run behind `stae decode`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stae_cli.batching import pack
from stae_cli.errors import InputError, StaeError, UsageError
from stae_cli.files.destination import FolderDestination
from stae_cli.files.entries import Problem
from stae_cli.files.failures import write_failures
from stae_cli.files.latents import SUFFIX, Latent, LatentInfo
from stae_cli.files.naming import folded
from stae_cli.files.pictures import (
    LONGEST_SIDE,
    PictureFormat,
    read_picture_record,
    write_picture,
)
from stae_cli.files.readahead import Reserve, read_ahead
from stae_cli.files.record import NO_PREP, RunRecord, settle_record
from stae_cli.files.stored import StoredLatent, list_latents
from stae_cli.files.uploads import local_folder
from stae_cli.files.writebehind import WriteBehind
from stae_cli.pipeline.report import Report, problem_or

if TYPE_CHECKING:
    from stae_cli.model.pixels import PixelCodec

READ_AHEAD_BYTES = 64 << 20
WRITE_BEHIND_BYTES = 256 << 20


@dataclass(frozen=True)
class DecodeSettings:
    """How latents are decoded, and how results are kept."""

    format: PictureFormat = "png"
    overwrite: bool = False
    workers: int | None = None


@dataclass(frozen=True)
class Decodable:
    """One stored latent and the picture, relative to DEST, that it leads to."""

    stored: StoredLatent
    output: str


@dataclass(frozen=True)
class DecodePlan:
    """Everything that is known before the network is needed.

    `weights`, `weights_sha256` and `architecture` are what all the latents record; empty where
    none is readable.
    """

    outputs: Sequence[Decodable]
    problems: Sequence[Problem]
    passed_over: int
    weights: str
    weights_sha256: str
    architecture: str
    destination: FolderDestination
    settings: DecodeSettings

    @property
    def total(self) -> int:
        """How many inputs there are."""
        return len(self.outputs) + len(self.problems)


@dataclass(frozen=True)
class _Loaded:
    """One latent, read, and the record to embed in its picture."""

    item: Decodable
    latent: Latent
    record: str


def plan_decode(
    sources: Sequence[Path | str], dest: Path | str, settings: DecodeSettings
) -> DecodePlan:
    """Finds the latents, reads their headers, names the pictures and prepares DEST.

    Raises:
        UsageError: a missing source, DEST inside a source or a file, colliding outputs.
        StaeError: no latents found, latents of several checkpoints, or an unwritable DEST.
    """
    destination = local_folder(dest)
    listing = list_latents(sources, dest)
    outputs = _named(listing.latents, settings.format)
    names: dict[str, LatentInfo] = {}
    for item in outputs:
        names.setdefault(item.stored.info.weights_sha256, item.stored.info)
    _refuse_several(names)
    made_with = _only(names)
    destination.prepare()
    return DecodePlan(
        outputs, listing.problems, listing.passed_over, *made_with, destination, settings
    )


def _named(latents: Sequence[StoredLatent], form: PictureFormat) -> list[Decodable]:
    """The picture of each latent; two of one name are refused."""
    first: dict[str, StoredLatent] = {}
    for stored in latents:
        other = first.setdefault(folded(stored.key), stored)
        if other is not stored:
            raise UsageError(
                f"`{other.file.place}` and `{stored.file.place}` would both write "
                f"`{stored.key}.{form}`",
                "decode them into different DESTs",
            )
    return [Decodable(stored, f"{stored.key}.{form}") for stored in latents]


def decode(plan: DecodePlan, codec: PixelCodec | None, *, advance: Callable[[int], None]) -> Report:
    """Decodes what the plan lists and is not done yet, each picture in its recorded size.

    Args:
        plan: from `plan_decode`.
        codec: runs the network, with the weights that the plan names; None when the
            plan has no readable latent.
        advance: called with the number of inputs that were finished, one way or another.

    Raises:
        StaeError: DEST belongs to another run, or can no longer be written to.
    """
    report = Report(advance)
    for problem in plan.problems:
        report.fail(problem)
    try:
        if codec is not None:
            _Decoding(plan, codec, report).run()
    finally:
        write_failures(plan.destination, report.problems, report.share)
    return report


class _Decoding:
    """One run's state: the plan, the network and the report."""

    def __init__(self, plan: DecodePlan, codec: PixelCodec, report: Report) -> None:
        self.plan, self.settings = plan, plan.settings
        self.codec, self.report = codec, report
        self.threads = plan.settings.workers or os.cpu_count() or 1

    def run(self) -> None:
        settle_record(
            self.plan.destination,
            self._record(),
            is_planned=frozenset(item.output for item in self.plan.outputs).__contains__,
            overwrite=self.settings.overwrite,
        )
        with self.report.running():
            self._decode_all()

    def _decode_all(self) -> None:
        report = self.report
        writer = WriteBehind(
            threads=self.threads, max_bytes=WRITE_BEHIND_BYTES, on_written=report.written
        )
        with writer:
            results = read_ahead(
                self.plan.outputs, self._read, threads=self.threads, max_bytes=READ_AHEAD_BYTES
            )
            units = self.codec.architecture.units
            packs = pack(
                report.sift(results),
                patches=lambda loaded: units * loaded.latent[0].size,
                limit=self.codec.batch_patches,
            )
            for members in report.drawing(packs, "reading"):
                with report.spending("network"):
                    pictures = self.codec.decode_pixels([loaded.latent for loaded in members])
                with report.spending("writing"):
                    for loaded, pixels in zip(members, pictures, strict=True):
                        self._save(loaded, pixels, writer)
            with report.spending("writing"):
                writer.drain()

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
        if not np.isfinite(latent).all():
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
        path = self.plan.destination.path(item.output)
        found = read_picture_record(path)
        if found is None and path.exists() and path.stat().st_size:
            raise InputError(
                f"its output `{path}` exists and is no whole picture of stae; "
                "move it, or replace it with --overwrite"
            )
        return found == record

    def _save(
        self, loaded: _Loaded, pixels: npt.NDArray[np.uint8] | None, writer: WriteBehind[int]
    ) -> None:
        if pixels is None:
            reason = "the network gave NaN or infinity, in float32 too"
            self.report.fail(Problem(loaded.item.stored.label, reason))
            return
        picture = pixels[: loaded.item.stored.info.height, : loaded.item.stored.info.width]
        output = loaded.item.output

        def write() -> int:
            with self.plan.destination.writing(output) as path:
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

    def _record(self) -> RunRecord:
        return RunRecord(
            kind="pictures",
            weights=self.plan.weights,
            weights_sha256=self.plan.weights_sha256,
            prep=NO_PREP,
            output=self.settings.format,
        )


def _only(names: dict[str, LatentInfo]) -> tuple[str, str, str]:
    for fingerprint, info in names.items():
        return info.weights, fingerprint, info.architecture
    return "", "", ""


def _refuse_several(names: dict[str, LatentInfo]) -> None:
    if len(names) > 1:
        listed = ", ".join(f"`{info.weights}` ({sha[:12]})" for sha, info in names.items())
        raise StaeError(
            f"the latents were made with {len(names)} different checkpoints: {listed}",
            "decode each checkpoint's latents by themselves",
        )

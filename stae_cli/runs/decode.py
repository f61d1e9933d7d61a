"""Latents to pictures: the plan of a decode run, and the run behind `stae decode`."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from stae_cli.errors import InputError, StaeError, UsageError
from stae_cli.flow.read_ahead import Reserve
from stae_cli.images.buffers import Pixels
from stae_cli.images.write import LONGEST_SIDE, PictureFormat, read_picture_record, write_picture
from stae_cli.latents.exchanged import Exchanged
from stae_cli.latents.failures import write_failures
from stae_cli.latents.format import Latent, StoredLatent, is_finite
from stae_cli.latents.info import LatentInfo
from stae_cli.latents.listing import list_latents
from stae_cli.latents.run_record import NO_PREP, RunRecord, check_record, settle_record
from stae_cli.latents.writer import Written
from stae_cli.runs.picture_record import is_picture_of, picture_record, recorded
from stae_cli.runs.pipeline import Pipeline
from stae_cli.runs.tally import Tally
from stae_cli.runs.workers import Task, Workers
from stae_cli.storage.destination import FolderDestination
from stae_cli.storage.entry import Problem, root_id
from stae_cli.storage.names import EXACT, NameRules
from stae_cli.storage.remote_destination import local_folder

if TYPE_CHECKING:
    from stae_cli.codec.pixel_codec import PixelCodec

PART = 256  # latents that one of several processes decodes at a time

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodeSettings:
    """How latents are decoded, and how results are kept."""

    format: PictureFormat = "png"
    overwrite: bool = False
    workers: int | None = None


@dataclass(frozen=True)
class DecodePlan:
    """Everything that is known before the network is needed.

    `weights`, `weights_sha256` and `architecture` are what all the latents record; empty where
    none is readable.
    """

    latents: Sequence[StoredLatent]
    problems: Sequence[Problem]
    passed_over: Counter[str]
    weights: str
    weights_sha256: str
    architecture: str
    destination: FolderDestination
    settings: DecodeSettings

    @property
    def total(self) -> int:
        """How many inputs there are."""
        return len(self.latents) + len(self.problems)

    def parts(self) -> Iterator[Sequence[StoredLatent]]:
        """The latents in pieces, for processes that share them."""
        for begin in range(0, len(self.latents), PART):
            yield self.latents[begin : begin + PART]


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
    _refuse_equal_outputs(listing.latents, settings.format, EXACT)
    infos: dict[str, LatentInfo] = {}
    for stored in listing.latents:
        infos.setdefault(stored.info.weights_sha256, stored.info)
    if len(infos) > 1:
        listed = ", ".join(f"`{info.weights}` ({sha[:12]})" for sha, info in infos.items())
        raise StaeError(
            f"the latents were made with {len(infos)} different checkpoints: {listed}",
            "decode each checkpoint's latents by themselves",
        )
    info = next(iter(infos.values()), None)
    exchanged: Exchanged[StoredLatent] = Exchanged()
    for stored in listing.latents:
        exchanged.add(stored, stored.key, stored.info.source)
    wrong = {id(stored): Problem(stored.label, reason) for stored, reason in exchanged.found()}
    destination.prepare()
    if (rules := destination.rules) != EXACT:
        _refuse_equal_outputs(listing.latents, settings.format, rules)
    return DecodePlan(
        latents=[stored for stored in listing.latents if id(stored) not in wrong],
        problems=[*listing.problems, *wrong.values()],
        passed_over=listing.passed_over,
        weights=info.weights if info else "",
        weights_sha256=info.weights_sha256 if info else "",
        architecture=info.architecture if info else "",
        destination=destination,
        settings=settings,
    )


def _refuse_equal_outputs(
    latents: Sequence[StoredLatent], form: PictureFormat, rules: NameRules
) -> None:
    first: dict[str, StoredLatent] = {}
    for stored in latents:
        other = first.setdefault(rules.same(stored.key), stored)
        if other is not stored:
            raise UsageError(
                f"`{other.file.place}` and `{stored.file.place}` would both write "
                f"`{stored.key}.{form}`",
                "decode them into different DESTs"
                + (", or into one that tells their names apart" * (other.key != stored.key)),
            )


def decode(plan: DecodePlan, workers: Workers | None, *, advance: Callable[[int], None]) -> Tally:
    """Decodes what the plan lists and is not done yet, each picture in its recorded size.

    Args:
        plan: from `plan_decode`.
        workers: run the network, with the weights that the plan names; `ThisProcess(codec)` is the
            simplest kind. None when the plan has no readable latent.
        advance: called with the number of inputs that were finished, one way or another.

    Raises:
        StaeError: DEST belongs to another run, or can no longer be written to; or a worker cannot
            be had, or died.
    """
    settings, destination = plan.settings, plan.destination
    threads = settings.workers or (workers.threads if workers else 1)
    dtype = workers.compute_dtype if workers else ""
    task = DecodeTask(destination, settings, plan.weights, plan.weights_sha256, dtype, threads)
    if plan.latents:
        settle_record(
            destination,
            task.record,
            is_planned=frozenset(map(task.output, plan.latents)).__contains__,
            overwrite=settings.overwrite,
        )
    tally = Tally(advance)
    try:
        for problem in plan.problems:
            tally.fail(problem)
        with tally.running():
            if workers is not None:
                workers.run(task, plan.parts(), tally)
                check_record(destination, task.record)
    finally:
        roots = {root_id(stored.file.root) for stored in plan.latents}
        write_failures(destination, tally.problems, tally.share, roots=roots)
        destination.finish()
    return tally


@dataclass(frozen=True)
class DecodeTask(Task[Sequence[StoredLatent]]):
    """What each process of a run knows, whichever latents it decodes; it can be pickled.

    `weights` and `weights_sha256` name the checkpoint that made all of them; `compute_dtype` is the
    network's; `threads` read, and as many write.
    """

    destination: FolderDestination
    settings: DecodeSettings
    weights: str
    weights_sha256: str
    compute_dtype: str
    threads: int

    @property
    def record(self) -> RunRecord:
        return RunRecord(
            kind="pictures",
            weights=self.weights,
            weights_sha256=self.weights_sha256,
            prep=NO_PREP,
            output=self.settings.format,
            compute_dtype=self.compute_dtype,
        )

    def output(self, stored: StoredLatent) -> str:
        """The picture, relative to DEST, of a latent."""
        return f"{stored.key}.{self.settings.format}"

    def do(self, parts: Iterable[Sequence[StoredLatent]], codec: PixelCodec, tally: Tally) -> None:
        try:
            _Decoding(self, codec, tally).run(chain.from_iterable(parts))
        finally:
            self.destination.finish()


class _Decoding(Pipeline[StoredLatent, Latent, Pixels | None]):
    """The decoding of some latents."""

    read_bytes = 64 << 20  # latents are small

    def __init__(self, task: DecodeTask, codec: PixelCodec, tally: Tally) -> None:
        super().__init__(codec, tally, threads=task.threads)
        self.task, self.format = task, task.settings.format

    def label(self, item: StoredLatent) -> str:
        return item.label

    def read(self, item: StoredLatent, reserve: Reserve) -> Latent | None:
        if item.file.state() != item.state:
            raise InputError("it changed while the run was under way")
        if not self.task.settings.overwrite and self._is_done(item):
            _log.debug("skipping %s: decoded already", item.label)
            return None
        reserve(item.size)
        latent = item.read()
        self._check(latent, item.info)
        return latent

    def _is_done(self, stored: StoredLatent) -> bool:
        """Whether the picture is whole and was made from this latent.

        Raises:
            InputError: another program's file is in its place.
        """
        path = self.task.destination.path(self.task.output(stored))
        found = read_picture_record(path)
        if found is None:
            if path.exists() and path.stat().st_size:
                raise InputError(
                    f"its output `{path}` exists and is not a complete picture of stae; "
                    "move it, or replace it with --overwrite"
                )
            return False
        record = picture_record(stored)
        if is_picture_of(found, record):
            return True
        if recorded(found, "latents_root") not in (None, record["latents_root"]):
            raise InputError(
                f"its output `{path}` was decoded from another latent of its name, in another "
                "folder; choose another DEST, or replace it with --overwrite"
            )
        _log.info("decoding %s again: its picture is of another version of it", stored.label)
        return False

    def _check(self, latent: Latent, info: LatentInfo) -> None:
        sizes = self.codec.architecture
        numbers = (info.downsample, info.latent_channels) == (sizes.downsample, sizes.channels)
        if not (numbers and sizes.is_named(info.architecture)):
            raise InputError(
                f"damaged: it says {info.architecture}, {info.latent_channels} channels at "
                f"1/{info.downsample}, but its weights are a {sizes.describe()}"
            )
        if not is_finite(latent):
            raise InputError("it holds NaN or infinity")
        longest = LONGEST_SIDE[self.format]
        if max(info.width, info.height) > longest:
            raise InputError(
                f"{info.width}x{info.height} exceeds the {longest} pixels of a "
                f"{self.format} side; use --format png"
            )

    def patches(self, loaded: Latent) -> int:
        return self.codec.architecture.units * loaded[0].size

    def begin(self, pack: Sequence[Latent]) -> Callable[[], Sequence[Pixels | None]]:
        return self.codec.begin_decoding(pack)

    def save(self, item: StoredLatent, loaded: Latent, result: Pixels | None) -> None:
        if result is None:
            self.fail(item, "the network gave NaN or infinity, in float32 too")
            return
        picture = result[: item.info.height, : item.info.width]

        record = json.dumps(picture_record(item), sort_keys=True)

        def write() -> Written:
            output = self.task.output(item)
            with self.task.destination.writing(output, self.writer.turn) as path:
                write_picture(path, picture, format=self.format, record=record)
                return Written(1, path.stat().st_size)

        self.tally.pixels += item.info.width * item.info.height
        self.writer.submit(result.nbytes, write)

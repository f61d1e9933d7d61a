"""Latents to pictures: the plan of a decode run, and the run behind `stae decode`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, cast

from stae_cli.errors import StaeError, UsageError
from stae_cli.foreign.arrays import ForeignLatent
from stae_cli.foreign.listing import DecodableListing, list_decodable
from stae_cli.foreign.normalised import Undo
from stae_cli.images.write import PictureFormat
from stae_cli.latents.exchanged import Exchanged
from stae_cli.latents.failures import write_failures
from stae_cli.latents.format import StoredLatent
from stae_cli.latents.info import LatentInfo
from stae_cli.latents.run_record import NO_PREP, RunRecord, check_record, settle_record
from stae_cli.runs.decoding import ForeignDecoding, StoredDecoding
from stae_cli.runs.foreign_plan import foreign_latents, network_of
from stae_cli.runs.grid import GRID, Grid, check_place, write_grid
from stae_cli.runs.picture_outputs import PictureOutputs
from stae_cli.runs.tally import Tally
from stae_cli.runs.workers import Task, Workers
from stae_cli.storage.destination import FolderDestination
from stae_cli.storage.entry import Problem, root_id
from stae_cli.storage.names import EXACT
from stae_cli.storage.remote_destination import local_folder

if TYPE_CHECKING:
    from stae_cli.codec.pixel_codec import PixelCodec

PART = 256  # latents that one of several processes decodes at a time

Latents = Sequence[StoredLatent] | Sequence[ForeignLatent]


@dataclass(frozen=True)
class DecodeSettings:
    """How latents are decoded, and how results are kept.

    `grid` asks for one more picture, of all samples; `undo` makes latents of other programs raw
    again, and `statistics` is the file that it came from.
    """

    format: PictureFormat = "png"
    overwrite: bool = False
    workers: int | None = None
    grid: bool = False
    undo: Undo = Undo()  # noqa: RUF009 (it is frozen)
    statistics: Path | None = None


@dataclass(frozen=True)
class DecodePlan:
    """Everything that is known before the network is needed.

    `weights`, `weights_sha256` and `architecture` are what all the latents record, or those of the
    checkpoint that was given for latents of other programs; empty where none is readable. `notes`
    are for the user.
    """

    latents: Latents
    problems: Sequence[Problem]
    passed_over: Counter[str]
    weights: str
    weights_sha256: str
    architecture: str
    destination: FolderDestination
    settings: DecodeSettings
    notes: Sequence[str] = ()

    @property
    def total(self) -> int:
        """How many inputs there are."""
        return len(self.latents) + len(self.problems)

    @property
    def outputs(self) -> PictureOutputs:
        """Where the pictures go."""
        return PictureOutputs(self.destination, self.settings.format, self.settings.overwrite)

    def parts(self) -> Iterator[Latents]:
        """The latents in pieces, for processes that share them."""
        for begin in range(0, len(self.latents), PART):
            yield self.latents[begin : begin + PART]


def plan_decode(
    sources: Sequence[Path | str],
    dest: Path | str,
    settings: DecodeSettings,
    *,
    weights: str | None = None,
) -> DecodePlan:
    """Finds the latents, reads their headers, names the pictures and prepares DEST.

    Args:
        sources: files, folders or URLs.
        dest: a folder.
        settings: of the run.
        weights: the checkpoint that latents of other programs are decoded with.

    Raises:
        UsageError: a missing source, DEST inside a source or a file, colliding outputs, or settings
            that are not for these latents.
        CheckpointError: latents of other programs, and `weights` is not available.
        StaeError: no latents found, latents of several checkpoints, or an unwritable DEST.
    """
    destination = local_folder(dest)
    listing = list_decodable(sources, dest, statistics=settings.statistics)
    if listing.foreign:
        planned = _foreign_plan(listing, destination, settings, weights)
    else:
        planned = _stored_plan(listing, destination, settings)
    keys = [(latent.key, latent.file.place) for latent in planned.latents]
    keys += [(GRID, "--grid")] * settings.grid
    planned.outputs.refuse_collisions(keys, EXACT)
    destination.prepare()
    if (rules := destination.rules) != EXACT:
        planned.outputs.refuse_collisions(keys, rules)
    if settings.grid:
        check_place(planned.outputs)
    return planned


def _stored_plan(
    listing: DecodableListing, destination: FolderDestination, settings: DecodeSettings
) -> DecodePlan:
    if listing.latents and (settings.statistics or not settings.undo.is_nothing):
        raise UsageError(
            "`--stats`, `--shift` and `--scale` are for latents of other programs; those of stae "
            "are stored as they are",
            "omit them",
        )
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


def _foreign_plan(
    listing: DecodableListing,
    destination: FolderDestination,
    settings: DecodeSettings,
    weights: str | None,
) -> DecodePlan:
    checkpoint = network_of(weights, listing.foreign[0][0].file.place)
    found = foreign_latents(listing.foreign, checkpoint, settings.undo)
    return DecodePlan(
        latents=found.latents,
        problems=[*listing.problems, *found.problems],
        passed_over=listing.passed_over,
        weights=checkpoint.name,
        weights_sha256=checkpoint.fingerprint,
        architecture=checkpoint.architecture.describe(),
        destination=destination,
        settings=settings,
        notes=found.notes,
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
        keys = [*(latent.key for latent in plan.latents), *[GRID] * settings.grid]
        settle_record(
            destination,
            task.record,
            is_planned=frozenset(map(plan.outputs.name, keys)).__contains__,
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
        roots = {root_id(latent.file.root) for latent in plan.latents}
        write_failures(destination, tally.problems, tally.share, roots=roots)
        destination.finish()
    return tally


def grid_of(plan: DecodePlan) -> Grid:
    """Writes one picture of all that the plan's latents became, in DEST.

    Raises:
        StaeError: DEST cannot be written to.
    """
    names = [plan.outputs.name(latent.key) for latent in plan.latents]
    grid = write_grid(plan.outputs, names, weights_sha256=plan.weights_sha256)
    plan.destination.finish()
    return grid


@dataclass(frozen=True)
class DecodeTask(Task[Latents]):
    """What each process of a run knows, whichever latents it decodes; it can be pickled.

    `weights` and `weights_sha256` name the checkpoint of all of them; `compute_dtype` is the
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

    def do(self, parts: Iterable[Latents], codec: PixelCodec, tally: Tally) -> None:
        latents = chain.from_iterable(parts)
        first = next(latents, None)
        if first is None:
            return
        settings, latents = self.settings, chain([first], latents)
        outputs = PictureOutputs(self.destination, settings.format, settings.overwrite)
        try:
            if isinstance(first, StoredLatent):
                stored = StoredDecoding(outputs, codec, tally, threads=self.threads)
                stored.run(cast(Iterator[StoredLatent], latents))
            else:
                foreign = ForeignDecoding(
                    *(outputs, codec, tally),
                    threads=self.threads,
                    undo=settings.undo,
                    weights_sha256=self.weights_sha256,
                )
                foreign.run(cast(Iterator[ForeignLatent], latents))
        finally:
            self.destination.finish()

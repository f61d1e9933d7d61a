"""Images to latents: the run behind `stae encode`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from stae_cli.errors import StaeError
from stae_cli.latents.failures import write_failures
from stae_cli.latents.manifest import Manifest
from stae_cli.latents.run_record import settle_record
from stae_cli.runs.encode_plan import EncodePlan
from stae_cli.runs.encoding import EncodeTask, encode_units
from stae_cli.runs.tally import Report
from stae_cli.runs.units import shard_number
from stae_cli.runs.workers import CodecMaker, Worker, Workers

if TYPE_CHECKING:
    from stae_cli.checkpoints.checkpoint import Checkpoint
    from stae_cli.codec.pixel_codec import PixelCodec


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
    task = _task(plan, checkpoint)
    with _running(plan, task, advance) as (report, manifest):
        encode_units(task, plan.my_units(), codec, report, manifest)
    return report


def encode_with(
    workers: Workers,
    plan: EncodePlan,
    checkpoint: Checkpoint,
    make_codec: CodecMaker,
    *,
    advance: Callable[[int], None],
) -> Report:
    """The same, done by other processes, which get a unit at a time.

    Raises:
        StaeError: likewise; or a worker cannot be had, or died.
    """
    settings = replace(plan.settings, workers=plan.settings.workers or workers.threads)
    task = replace(_task(plan, checkpoint), settings=settings)
    with _running(plan, task, advance) as (report, manifest):
        worker = Worker(task, make_codec)
        parts = plan.my_units()
        for tally in workers.tallies(worker, parts, interrupted=lambda: report.interrupted):
            manifest.extend(tally.manifest)
            report.add(tally)
    return report


def _task(plan: EncodePlan, checkpoint: Checkpoint) -> EncodeTask:
    return EncodeTask(
        plan.destination, plan.settings, checkpoint.name, checkpoint.fingerprint, plan.known()
    )


@contextmanager
def _running(
    plan: EncodePlan, task: EncodeTask, advance: Callable[[int], None]
) -> Iterator[tuple[Report, Manifest]]:
    """What stands around the encoding itself: the record before, manifest and failures after."""
    settings, destination = plan.settings, plan.destination
    report = Report(advance, settings.share, strict=settings.strict)
    settle_record(destination, task.record, is_planned=plan.makes, overwrite=settings.overwrite)
    _refuse_surplus(plan)
    try:
        with report.running(), closing(Manifest(destination, settings.share)) as manifest:
            for problem in plan.problems if settings.share.rank == 0 else ():
                report.fail(problem)
            yield report, manifest
            if settings.shard_size and not report.interrupted:
                manifest.write()
    finally:
        write_failures(destination, report.problems, settings.share)


def _refuse_surplus(plan: EncodePlan) -> None:
    """Shards behind the last one are another run's, whose pictures would be there twice."""
    if not plan.settings.shard_size:
        return
    for name in plan.destination.top_names():
        number = shard_number(name)
        if number is not None and number >= plan.listed_shards:
            raise StaeError(
                f"`{plan.destination.place(name)}` is more than this run's sources need",
                "choose another DEST; or, if sources are gone for good, remove the shards of DEST",
            )

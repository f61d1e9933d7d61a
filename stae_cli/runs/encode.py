"""Images to latents: the run behind `stae encode`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING

from stae_cli.latents.failures import write_failures
from stae_cli.latents.run_record import (
    check_record,
    settle_record,
)
from stae_cli.runs.encode_plan import EncodePlan
from stae_cli.runs.encoding import EncodeTask
from stae_cli.runs.orphans import list_orphans, prune_planned, refuse_surplus
from stae_cli.runs.tally import Tally
from stae_cli.runs.workers import Workers

if TYPE_CHECKING:
    from stae_cli.checkpoints.checkpoint import Checkpoint


def encode(
    plan: EncodePlan, checkpoint: Checkpoint, workers: Workers, *, advance: Callable[[int], None]
) -> Tally:
    """Encodes what the plan lists and is not done yet.

    Args:
        plan: from `plan_encode`.
        checkpoint: the weights of the workers' codecs; its name and fingerprint are recorded.
        workers: do the units; `ThisProcess(codec)` is the simplest kind.
        advance: called with the number of inputs that were finished, one way or another.

    Raises:
        StaeError: DEST belongs to another run, or can no longer be written to; or a worker cannot
            be had, or died.
    """
    settings, destination = plan.settings, plan.destination
    threads = settings.workers or workers.threads
    task = EncodeTask(
        destination,
        settings,
        checkpoint.name,
        checkpoint.fingerprint,
        workers.compute_dtype,
        plan.known(),
        threads,
        plan.present.moved,
    )
    settle_record(destination, task.record, is_planned=plan.makes, overwrite=settings.overwrite)
    refuse_surplus(plan)
    manifest, part = task.new_manifest(), plan.part()
    part.begin()
    tally = Tally(advance, settings.share, settings.strict, manifest=manifest)
    try:
        with tally.running(), closing(part), closing(manifest) if manifest else nullcontext():
            prune_planned(plan, manifest)
            for problem in plan.problems if settings.share.rank == 0 else ():
                tally.fail(problem)
            workers.run(task, plan.my_units(), tally)
            check_record(destination, task.record)
            if manifest and not tally.interrupted:
                manifest.write()
            if not tally.interrupted:
                tally.unfinished = part.finish()
            list_orphans(plan, tally.orphans)
    finally:
        write_failures(
            *(destination, tally.problems, settings.share),
            roots=plan.roots,
            concerns=plan.concerns,
        )
        destination.finish()
    return tally

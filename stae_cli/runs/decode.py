"""Latents to pictures: the run behind `stae decode`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from stae_cli.latents.failures import write_failures
from stae_cli.latents.run_record import settle_record
from stae_cli.runs.decode_plan import DecodePlan
from stae_cli.runs.decoding import DecodeTask, decode_latents
from stae_cli.runs.tally import Report
from stae_cli.runs.workers import CodecMaker, Worker, Workers

if TYPE_CHECKING:
    from stae_cli.codec.pixel_codec import PixelCodec


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
    with _running(plan, advance) as (task, report):
        if codec is not None:
            decode_latents(task, plan.outputs, codec, report)
    return report


def decode_with(
    workers: Workers,
    plan: DecodePlan,
    make_codec: CodecMaker,
    *,
    advance: Callable[[int], None],
) -> Report:
    """The same, done by other processes, which get some latents at a time.

    Raises:
        StaeError: likewise; or a worker cannot be had, or died.
    """
    with _running(plan, advance) as (task, report):
        settings = replace(plan.settings, workers=plan.settings.workers or workers.threads)
        worker = Worker(replace(task, settings=settings), make_codec)
        for tally in workers.tallies(worker, plan.parts(), interrupted=lambda: report.interrupted):
            report.add(tally)
    return report


@contextmanager
def _running(
    plan: DecodePlan, advance: Callable[[int], None]
) -> Iterator[tuple[DecodeTask, Report]]:
    """What stands around the decoding itself: the record before, the failures after."""
    task = DecodeTask(plan.destination, plan.settings, plan.weights, plan.weights_sha256)
    report = Report(advance)
    if plan.outputs:
        settle_record(
            plan.destination,
            task.record,
            is_planned=frozenset(item.output for item in plan.outputs).__contains__,
            overwrite=plan.settings.overwrite,
        )
    try:
        for problem in plan.problems:
            report.fail(problem)
        with report.running():
            yield task, report
    finally:
        write_failures(plan.destination, report.problems, report.share)

"""What a run prints at its end: counts, speed, where the time went, and every failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stae_cli.cli.console import print_error, print_json, print_note, print_warning

if TYPE_CHECKING:
    from stae_cli.codec.codec import Codec
    from stae_cli.runs.decode import DecodePlan
    from stae_cli.runs.encode_plan import EncodePlan
    from stae_cli.runs.roundtrip_plan import RoundtripPlan
    from stae_cli.runs.tally import Tally
    from stae_cli.storage.entry import Problem
    from stae_cli.training.run import Outcome, Progress, Run

    Plan = EncodePlan | DecodePlan | RoundtripPlan

ALL_GOOD, SOME_FAILED = 0, 3
NAMED = 3  # photos or parts in a message
SAME = 20  # failures with the same reason that are printed


def finish(
    report: Tally,
    plan: Plan,
    codec: Codec | None,
    *,
    verb: str,
    quiet: bool,
    as_json: bool,
    extra: Mapping[str, Any] | None = None,
) -> int:
    """Prints the report, with `extra` in the JSON, and returns the exit code."""
    from stae_cli.latents.failures import failures_name

    _print_failures(report.problems)
    if report.problems:
        listed = plan.destination.place(failures_name(report.share))
        inputs = report.done + report.skipped + len(report.problems)
        print_note(f"{len(report.problems)} of {inputs} inputs failed, listed in {listed}")
    if not quiet:
        _print_summary(report, plan, verb)
        if codec is not None and codec.ran_out_of_memory:
            print_warning(
                f"`{codec.device}` ran out of memory; it continued with {codec.batch_patches} "
                f"patches at once (`--batch-patches {codec.batch_patches}` starts with that)"
            )
        if codec is not None and codec.unfused:
            print_note(f"the network ran without its fast kernels: {codec.unfused}")
    if as_json:
        print_json(_summary(report, plan, codec) | dict(extra or {}))
    return SOME_FAILED if report.problems else ALL_GOOD


def _print_failures(problems: Sequence[Problem]) -> None:
    """Prints each failure, but only some of many that have the same reason."""
    seen: Counter[str] = Counter()
    for problem in problems:
        seen[problem.reason] += 1
        if seen[problem.reason] <= SAME:
            print_error(f"{problem.key}: {problem.reason}")
    for reason, count in seen.items():
        if count > SAME:
            print_error(f"and {count - SAME} more: {reason}")


def _print_summary(report: Tally, plan: Plan, verb: str) -> None:
    from stae_cli.images.plugins import REMEDIES
    from stae_cli.storage.names import summary_of

    counts = [f"{verb} {report.done}", f"skipped {report.skipped} already done"]
    counts += [f"{report.noted} with new captions or labels"] * bool(report.noted)
    counts.append(f"failed {len(report.problems)}")
    if plan.passed_over:
        counts.append(f"passed over {summary_of(plan.passed_over)}")
    part = f"{report.share}: " if report.share.count > 1 else ""
    print_note(part + ", ".join(counts))
    if report.unfinished:
        print_note(f"parts that have not finished: {_named([*map(str, report.unfinished)])}")
    for kind in filter(REMEDIES.__contains__, plan.passed_over):
        print_note(REMEDIES[kind])
    if not report.done:
        return
    speed = report.done / report.seconds
    print_note(
        f"{report.seconds:.1f} s: {speed:.2f} images/s, "
        f"{report.pixels / report.seconds / 1e6:.2f} megapixels/s, "
        f"{report.bytes_written / 1e6:.2f} MB written to {plan.destination.place()}"
    )
    total = sum(report.waits.values()) or 1.0
    shares = (f"{stage} {seconds / total:.0%}" for stage, seconds in report.waits.items())
    print_note(f"time spent on: {', '.join(shares)}")


def _summary(report: Tally, plan: Plan, codec: Codec | None) -> dict[str, Any]:
    seconds = report.seconds or 1.0
    return {
        "done": report.done,
        "skipped": report.skipped,
        "noted": report.noted,
        "failed": len(report.problems),
        "passed_over": plan.passed_over.total(),
        "passed_over_by_suffix": dict(plan.passed_over.most_common()),
        "failures": [{"source": p.key, "reason": p.reason} for p in report.problems],
        "dest": plan.destination.place(),
        "seconds": report.seconds,
        "images_per_second": report.done / seconds,
        "megapixels_per_second": report.pixels / seconds / 1e6,
        "bytes_written": report.bytes_written,
        "seconds_spent_on": dict(report.waits),
        "device": str(codec.device) if codec else None,
        "dtype": str(codec.dtype).removeprefix("torch.") if codec else None,
    }


def part_of(report: Tally) -> dict[str, Any] | None:
    """For the JSON: which part of a run this was; None if it was all of it."""
    share = report.share
    if share.count == 1:
        return None
    return {
        "rank": share.rank,
        "count": share.count,
        "from": share.said_by,
        "unfinished": list(report.unfinished),
    }


def _named(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def progress_shown(show: Callable[[float, str], None]) -> Callable[[Progress], None]:
    """Moves a bar, with step, loss and PSNR beside it."""

    def on_progress(progress: Progress) -> None:
        facts = [f"step {progress.step}"]
        if progress.loss is not None:
            facts.append(f"loss {progress.loss:.5f}")
        if progress.psnr is not None:
            facts.append(f"PSNR {progress.psnr:.2f} dB")
        show(progress.fraction, ", ".join(facts))

    return on_progress


def announce_training(run: Run, *, quiet: bool) -> None:
    """Prints what a run trains on, and which of it cannot be used."""
    photos = run.photos
    for problem in photos.problems:
        print_error(f"{problem.key}: {problem.reason}")
    if run.overlap:
        print_warning(
            "--validate holds photos that are trained on too, so their PSNR says little about "
            f"others: {_named(run.overlap)}"
        )
    if quiet:
        return
    words = [f"{photos.photos} photos, {photos.pixels / 1e6:.0f} megapixels"]
    words += [f"{photos.small} smaller than the crop were skipped"] * bool(photos.small)
    words += [f"{photos.left_out} left out for lack of --memory"] * bool(photos.left_out)
    print_note(", ".join(words))
    if run.resumed_at:
        print_note(f"continuing after step {run.resumed_at}")


def finish_training(outcome: Outcome, *, quiet: bool, as_json: bool) -> int:
    """Prints what a run made; returns the exit code."""
    if not quiet:
        print_note(f"{outcome.steps} steps in {outcome.seconds / 60:.1f} minutes")
        if outcome.psnr is not None:
            print_note(f"validation PSNR {outcome.psnr:.2f} dB")
        print_note(f"wrote {outcome.out}; log and pictures are in {outcome.workspace}")
        if outcome.no_curve is not None:
            print_note(f"there is no curve.png: {outcome.no_curve}")
    if as_json:
        print_json(_training_summary(outcome))
    return SOME_FAILED if outcome.photos.problems else ALL_GOOD


def _training_summary(outcome: Outcome) -> dict[str, Any]:
    from stae_cli.metrics import finite

    photos = outcome.photos
    return {
        "checkpoint": str(outcome.out),
        "folder": str(outcome.workspace),
        "steps": outcome.steps,
        "seconds": outcome.seconds,
        "resumed_at": outcome.resumed_at,
        "loss": outcome.loss,
        "psnr": None if outcome.psnr is None else finite(outcome.psnr),
        "photos": photos.photos,
        "megapixels": photos.pixels / 1e6,
        "small": photos.small,
        "left_out": photos.left_out,
        "failures": [{"source": p.key, "reason": p.reason} for p in photos.problems],
    }

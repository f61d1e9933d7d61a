"""The report that ends a run: counts, speed, where the time went, and every failure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stae_cli.cli.console import print_error, print_json, print_note, print_warning

if TYPE_CHECKING:
    from stae_cli.codec.codec import Codec
    from stae_cli.runs.decode import DecodePlan
    from stae_cli.runs.encode_plan import EncodePlan
    from stae_cli.runs.roundtrip import RoundtripPlan
    from stae_cli.runs.tally import Tally

    Plan = EncodePlan | DecodePlan | RoundtripPlan

ALL_GOOD, SOME_FAILED = 0, 3


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

    for problem in report.problems:
        print_error(f"{problem.key}: {problem.reason}")
    if report.problems:
        listed = plan.destination.place(failures_name(report.share))
        inputs = report.done + report.skipped + len(report.problems)
        print_note(f"{len(report.problems)} of {inputs} inputs failed, listed in {listed}")
    if not quiet:
        _print_summary(report, plan, verb)
        if codec is not None and codec.ran_out_of_memory:
            print_warning(
                f"`{codec.device}` ran out of memory; it went on with {codec.batch_patches} "
                f"patches at once (`--batch-patches {codec.batch_patches}` starts with that)"
            )
        if codec is not None and codec.unfused:
            print_note(f"the network ran without its fast kernels: {codec.unfused}")
    if as_json:
        print_json(_summary(report, plan, codec) | dict(extra or {}))
    return SOME_FAILED if report.problems else ALL_GOOD


def _print_summary(report: Tally, plan: Plan, verb: str) -> None:
    counts = [f"{verb} {report.done}", f"skipped {report.skipped} already done"]
    counts.append(f"failed {len(report.problems)}")
    if plan.passed_over:
        counts.append(f"passed over {plan.passed_over} other files")
    print_note(", ".join(counts))
    if not report.done:
        return
    speed = report.done / report.seconds
    print_note(
        f"{report.seconds:.1f} s: {speed:.2f} images/s, "
        f"{report.pixels / report.seconds / 1e6:.2f} megapixels/s, "
        f"{report.bytes_written / 1e6:.2f} MB written to {plan.destination.place()}"
    )
    shares = (f"{stage} {share:.0%}" for stage, share in _shares(report).items())
    print_note(f"time spent on: {', '.join(shares)}")


def _shares(report: Tally) -> dict[str, float]:
    total = sum(report.waits.values()) or 1.0
    return {stage: seconds / total for stage, seconds in report.waits.items()}


def _summary(report: Tally, plan: Plan, codec: Codec | None) -> dict[str, Any]:
    seconds = report.seconds or 1.0
    return {
        "done": report.done,
        "skipped": report.skipped,
        "failed": len(report.problems),
        "passed_over": plan.passed_over,
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

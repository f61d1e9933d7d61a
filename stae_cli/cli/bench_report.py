"""What `stae bench` prints: tables of timings, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from stae_cli.cli.console import print_fact, print_table, print_warning

if TYPE_CHECKING:
    from stae_cli.benchmark.loop import LoopReport, LoopResult
    from stae_cli.benchmark.path import PathTimes
    from stae_cli.benchmark.report import CaseResult, Machine, Report, Spread, Timing

BUSY = 0.25  # a spread above this says more about other programs than about the network


def print_warnings(report: Report) -> None:
    """What went wrong or disturbed the timings, on stderr."""
    if report.unfused:
        print_warning(f"stae ran without its fast kernels: {report.unfused}")
    for result in report.results:
        for name, reason in result.left_out.items():
            print_warning(f"{result.case}: {name} is left out: {reason}")
    times = [timing.milliseconds for result in report.results for timing in result.timings]
    if any((time.p90 - time.p10) / time.median > BUSY for time in times):
        print_warning(
            f"timings vary by more than {BUSY:.0%}: the machine was busy, or rounds too few"
        )


def print_network(report: Report) -> None:
    """The machine, then tables for every size and batch."""
    machine = report.machine
    print_fact(f"{_ran_on(machine)}: {report.dtype}, {report.weights} weights")
    versions = {"python": machine.python, "torch": machine.torch, "stae": machine.stae}
    named = [" ".join(each) for each in (versions | dict(report.versions)).items()]
    print_fact(f"{machine.cpu}, {machine.threads} threads, {', '.join(named)}")
    for result in report.results:
        _print_case(result)
    print_fact("share: of the matmul's FLOP/s in the same round")
    if any(len(result.networks) > 1 for result in report.results):
        print_fact("x stae: time over that of stae in the same round")
    if report.host_peak_bytes is not None:
        print_fact(f"peak memory of the process of stae: {report.host_peak_bytes / 1e9:.2f} GB")


def _ran_on(machine: Machine) -> str:
    return f"ran on {machine.accelerator or 'the CPU, no accelerator was used'}"


def _print_case(result: CaseResult) -> None:
    """One table with a row per stage; in comparisons one table per stage."""
    matmul = "x".join(map(str, result.matmul))
    rate = f"a {matmul} matmul does {_rate(result.matmul_tflops.median)}FLOP/s"
    print_fact(f"{result.case}: {result.rounds} rounds; {rate}")
    if len(result.networks) == 1:
        _print_timings("stae", {timing.stage: timing for timing in result.timings}, compared=False)
        return
    for stage in result.stages:
        of_stage = {timing.network: timing for timing in result.timings if timing.stage == stage}
        _print_timings(stage, of_stage, compared=True)


def _print_timings(title: str, timings: Mapping[str, Timing], *, compared: bool) -> None:
    rows = {label: _cells(timing, compared=compared) for label, timing in timings.items()}
    columns = dict.fromkeys(name for cells in rows.values() for name in cells)
    lines = [[label, *(cells.get(name, "") for name in columns)] for label, cells in rows.items()]
    print_table(title, ["", *columns], lines)


def _cells(timing: Timing, *, compared: bool) -> dict[str, str]:
    """What a table shows of a timing, by column."""
    time = timing.milliseconds
    cells = {
        "ms": _figure(time.median),
        "p10-p90": f"{_figure(time.p10)}-{_figure(time.p90)}",
        "images/s": _figure(timing.images_per_second.median),
        "FLOP/s": _rate(timing.tflops),
        "share": f"{timing.share.median:.0%}",
    }
    if compared:
        cells["x stae"] = f"{timing.slowdown.median:.2f}"
    if timing.memory_bytes is not None:
        cells["GB"] = f"{timing.memory_bytes / 1e9:.2f}"
    return cells


def _rate(tflops: float) -> str:
    return f"{_figure(tflops)} T" if tflops >= 1 else f"{_figure(tflops * 1000)} G"


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def print_path(times: Sequence[PathTimes], machine: Machine, dtype: str) -> None:
    """A table for each direction, and what a faster machine would gain."""
    print_fact(f"{_ran_on(machine)}: {dtype}; {machine.cpu}, torch {machine.torch}")
    for one in times:
        print_fact(
            f"{one.command}: {one.images} images, {one.pixels / 1e6:.1f} megapixels, "
            f"{one.threads} threads for files"
        )
        rows = [
            [stage, f"{one.images / seconds:.2f}", f"{one.pixels / seconds / 1e6:.2f}"]
            for stage, seconds in one.seconds.items()
        ]
        print_table(one.command, ["alone, and whole", "images/s", "megapixels/s"], rows)
        print_fact(_bound(one))
    if machine.accelerator is None:
        print_fact("on a CPU the stages share its cores; alone, each had all of them")


def path_as_json(
    times: Sequence[PathTimes], machine: Machine, dtype: str, weights: str
) -> dict[str, Any]:
    """Plain dictionaries, lists and numbers."""
    return {
        "machine": asdict(machine),
        "dtype": dtype,
        "weights": weights,
        "paths": [{**asdict(one), "bound_by": one.bound} for one in times],
    }


def _bound(one: PathTimes) -> str:
    slowest = one.seconds[one.bound]
    others = ", ".join(
        f"{stage} could go {slowest / seconds:.1f}x as fast"
        for stage, seconds in one.seconds.items()
        if stage not in (one.bound, "whole")
    )
    share = slowest / one.seconds["whole"]
    return f"{one.command} is bound by {one.bound} (whole: {share:.0%} of it alone); {others}"


def print_loop(report: LoopReport) -> None:
    """Training steps with cached latents and with encoding, and whether caching pays."""
    machine = report.machine
    print_fact(
        f"{_ran_on(machine)}: encoding in {report.dtype}, steps in {report.step_dtype}; "
        f"{machine.cpu}, torch {machine.torch}"
    )
    for result in report.results:
        _print_steps(result)
    print_fact("reading files is not counted")


def _print_steps(result: LoopResult) -> None:
    title = (
        f"{result.transformer} ({result.parameters / 1e6:.0f} M parameters), {result.case}, "
        f"{result.tokens} tokens each"
    )
    rows = [
        _step_row("step, cached latents", result, result.cached),
        _step_row("step, encoding on the fly", result, result.on_the_fly),
        _step_row("encoding alone", result, result.encoding),
    ]
    print_table(title, ["", "ms", "p10-p90", "images/s"], rows)
    share = result.share.median
    print_fact(
        f"encoding is {share:.1%} of a step on the fly: caching would make training "
        f"{1 / (1 - share):.2f}x as fast"
    )
    print_fact(_advice(result))


def _step_row(label: str, result: LoopResult, time: Spread) -> list[str]:
    images = 1000 * result.case.batch / time.median
    return [label, f"{time.median:.1f}", f"{time.p10:.1f}-{time.p90:.1f}", f"{images:.2f}"]


def _advice(result: LoopResult) -> str:
    from stae_cli.benchmark.loop import WORTHWHILE

    verdict = "pays" if result.caching_pays else "is not worth it"
    millions = result.parameters_where_it_pays / 1e6
    pixels = result.case.width * result.case.height * result.case.batch
    return (
        f"caching {verdict} here: it pays where encoding is {WORTHWHILE:.0%} of a step or more, "
        f"by this measurement below about {millions:.0f} M parameters. A cache takes "
        f"{result.latent_bytes / 1e6:.2f} MB an image; without one, files must be read at "
        f"{pixels / result.on_the_fly.median / 1000:.1f} megapixels/s"
    )

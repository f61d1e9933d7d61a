"""`stae bench`: how fast this machine encodes and decodes, and how near its limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stae_cli.cli.benchloop import bench_loop
from stae_cli.cli.benchmodes import LOOP, PATH, PLAIN, check_options
from stae_cli.cli.benchpath import bench_path
from stae_cli.cli.benchweights import SEEDED, load_weights
from stae_cli.cli.console import print_fact, print_json, print_note, print_table, print_warning
from stae_cli.cli.options import (
    ArchitectureName,
    AsJson,
    ComputeDtype,
    Device,
    Dtype,
    Quiet,
    ReadersAndWriters,
    Weights,
    parse_device,
    parse_dtype,
)
from stae_cli.cli.size import parse_names, parse_size
from stae_cli.errors import UsageError

if TYPE_CHECKING:
    from stae_cli.benchmark.report import Case, CaseResult, Report, Timing

BUSY = 0.25  # a spread from which a timing says more about its neighbours

Sizes = Annotated[
    list[str],
    typer.Option(
        "--size", metavar="N|WxH", help="Pixels, multiples of 8 (or 32). May be repeated."
    ),
]
Batches = Annotated[
    list[int],
    typer.Option("--batch", metavar="N", min=1, help="Pictures in a call. May be repeated."),
]
Against = Annotated[
    str,
    typer.Option(
        metavar="NAME,...",
        help="Time these too: `reference` (the plain module), `sdxl`, `taesd`; on CUDA `unfused` "
        "(stae without its Triton kernels).",
        show_default=False,
    ),
]
Seconds = Annotated[
    float,
    typer.Option(
        metavar="S", min=0, help="Time for the rounds of each size and batch; at least 3 are made."
    ),
]
Plot = Annotated[
    Path | None, typer.Option(metavar="FILE.png", help="Draw images per second as a chart.")
]

PathOption = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Time the whole path of these images instead."),
]
Loop = Annotated[
    bool,
    typer.Option("--loop", help="Time training steps with cached latents and with encoding."),
]
Transformers = Annotated[
    list[str],
    typer.Option(
        "--transformer",
        metavar="SIZE",
        help="What --loop trains: small (21 M parameters), base (85 M), large (302 M) or huge "
        "(629 M). May be repeated.",
    ),
]


def bench(
    context: typer.Context,
    size: Sizes = ["1024"],  # noqa: B006  # Typer copies it
    batch: Batches = [1],  # noqa: B006
    against: Against = "",
    device: Device = "auto",
    dtype: ComputeDtype = Dtype.auto,
    weights: Weights = SEEDED,
    architecture: ArchitectureName = None,
    seconds: Seconds = 20.0,
    plot: Plot = None,
    path: PathOption = None,
    loop: Loop = False,
    transformer: Transformers = ["base"],  # noqa: B006
    workers: ReadersAndWriters = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure speed, memory and share of the machine's limit, alone or against others.

    Speed does not depend on what the weights are: seeded ones are used unless --weights is given.
    Inputs lie on the device; --path measures instead how fast the images of a folder are encoded
    and decoded, from file to file, and how fast reading, network and writing are by themselves.
    --loop measures what encoding on the fly adds to the training step of a transformer, and says
    whether caching latents pays.
    """
    device = parse_device(device)
    if loop and path is not None:
        raise UsageError("`--loop` and `--path` measure different things", "give one of them")
    check_options(_given(context), LOOP if loop else PLAIN if path is None else PATH)
    if path is not None:
        bench_path(
            path,
            architecture=architecture,
            device=device,
            dtype=dtype,
            weights=weights,
            workers=workers,
            quiet=quiet,
            as_json=as_json,
        )
        return
    sizes = [parse_size(each) for each in size]
    if loop:
        bench_loop(
            sizes,
            batch,
            transformer,
            architecture=architecture,
            device=device,
            dtype=dtype,
            weights=weights,
            seconds=seconds,
            quiet=quiet,
            as_json=as_json,
        )
        return

    from stae_cli.benchmark.chart import check_target, draw
    from stae_cli.benchmark.contenders import check_against
    from stae_cli.benchmark.report import Case
    from stae_cli.benchmark.run import run

    names = parse_names(against)
    check_against(names)
    _check_variants(names, device)
    if plot is not None:
        check_target(plot)
    checkpoint = load_weights(weights, architecture)
    report = run(
        checkpoint.model(),
        [Case(width, height, many) for width, height in sizes for many in batch],
        weights=checkpoint.name,
        against=names,
        device=device,
        dtype=parse_dtype(dtype),
        seconds=seconds,
        on_case=_silent if quiet else _announce,
    )
    if not quiet:
        _print_warnings(report)
    if not (quiet or as_json):
        _print_report(report)
    if plot is not None:
        draw(report, plot)
    if as_json:
        print_json(report.as_json())


def _given(context: typer.Context) -> list[str]:
    """The options that are on the command line, by their long names."""
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name and _is_given(context, parameter.name)
    ]


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _check_variants(names: Sequence[str], device: str) -> None:
    """Refuses forms of the codec that are the codec itself on this device."""
    from stae_cli.benchmark.contenders import VARIANTS
    from stae_cli.codec.device import pick_device

    variants = [name for name in names if name in VARIANTS]
    if variants and (kind := pick_device(device).type) != "cuda":
        raise UsageError(
            f"`{variants[0]}` differs from stae on CUDA only, and this is `{kind}`",
            "leave it away, or use `--device cuda`",
        )


def _silent(_case: Case) -> None:
    pass


def _announce(case: Case) -> None:
    print_note(f"timing {case}")


def _print_warnings(report: Report) -> None:
    if report.unfused:
        print_warning(f"stae ran without its fast kernels: {report.unfused}")
    for result in report.results:
        for name, reason in result.left_out.items():
            print_warning(f"{result.case}: {name} is left out: {reason}")
    if any(_spread(timing) > BUSY for result in report.results for timing in result.timings):
        print_warning("timings vary by more than 25%: the machine was busy, or rounds too few")


def _print_report(report: Report) -> None:
    machine = report.machine
    place = machine.accelerator or "the CPU, no accelerator was used"
    print_fact(f"ran on {place}: {report.dtype}, {report.weights} weights")
    print_fact(
        f"{machine.cpu}, {machine.threads} threads, python {machine.python}, "
        f"torch {machine.torch}, stae {machine.stae}"
    )
    for result in report.results:
        _print_case(result)
    print_fact("share: of the matmul's FLOP/s in the same round")
    if any(map(_compares, report.results)):
        print_fact("x stae: time over that of stae in the same round")
    if report.host_peak_bytes is not None:
        print_fact(f"peak memory of the process: {report.host_peak_bytes / 1e9:.2f} GB")


def _print_case(result: CaseResult) -> None:
    """Alone, one table with a row for each stage; compared, one for each stage."""
    matmul = "x".join(map(str, result.matmul))
    rate = f"a {matmul} matmul does {_rate(result.matmul_tflops.median)}FLOP/s"
    print_fact(f"{result.case}: {result.rounds} rounds; {rate}")
    if not _compares(result):
        _print_timings("stae", {timing.stage: timing for timing in result.timings})
        return
    for stage in dict.fromkeys(timing.stage for timing in result.timings):
        _print_timings(stage, {t.network: t for t in result.timings if t.stage == stage})


def _compares(result: CaseResult) -> bool:
    return len({timing.network for timing in result.timings}) > 1


def _print_timings(title: str, timings: Mapping[str, Timing]) -> None:
    columns = ["", "ms", "p10-p90", "images/s", "FLOP/s", "share"]
    compared = len({timing.network for timing in timings.values()}) > 1
    measured = any(timing.memory_bytes is not None for timing in timings.values())
    columns += ["x stae"] * compared + ["GB"] * measured
    rows = [
        [label, *_cells(timing, compared=compared, measured=measured)]
        for label, timing in timings.items()
    ]
    print_table(title, columns, rows)


def _cells(timing: Timing, *, compared: bool, measured: bool) -> list[str]:
    time = timing.milliseconds
    cells = [
        _figure(time.median),
        f"{_figure(time.p10)}-{_figure(time.p90)}",
        _figure(timing.images_per_second.median),
        _rate(timing.tflops),
        f"{timing.share.median:.0%}",
    ]
    if compared:
        cells.append(f"{timing.slowdown.median:.2f}")
    if measured:
        memory = timing.memory_bytes
        cells.append("" if memory is None else f"{memory / 1e9:.2f}")
    return cells


def _spread(timing: Timing) -> float:
    time = timing.milliseconds
    return (time.p90 - time.p10) / time.median


def _rate(tflops: float) -> str:
    return f"{_figure(tflops)} T" if tflops >= 1 else f"{_figure(tflops * 1000)} G"


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"

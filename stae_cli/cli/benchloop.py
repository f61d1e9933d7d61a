"""What `stae bench --loop` shows: training steps with cached latents and with encoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stae_cli.cli.benchweights import load_weights
from stae_cli.cli.console import print_fact, print_json, print_note, print_table
from stae_cli.cli.options import Dtype, parse_dtype

if TYPE_CHECKING:
    from stae_cli.benchmark.loop import LoopReport, LoopResult
    from stae_cli.benchmark.report import Case, Spread


def bench_loop(
    sizes: Sequence[tuple[int, int]],
    batches: Sequence[int],
    transformers: Sequence[str],
    *,
    architecture: str | None,
    device: str,
    dtype: Dtype,
    weights: str,
    seconds: float,
    quiet: bool,
    as_json: bool,
) -> None:
    """Times every transformer at every size and batch, and prints what it found."""
    from stae_cli.benchmark.loop import run_loop
    from stae_cli.benchmark.report import Case
    from stae_cli.benchmark.transformer import check_transformers

    check_transformers(transformers)
    checkpoint = load_weights(weights, architecture)

    def announce(case: Case, transformer: str) -> None:
        if not quiet:
            print_note(f"timing {case}, transformer {transformer}")

    report = run_loop(
        checkpoint.model(),
        [Case(width, height, many) for width, height in sizes for many in batches],
        transformers,
        weights=checkpoint.name,
        device=device,
        dtype=parse_dtype(dtype),
        seconds=seconds,
        on_case=announce,
    )
    if as_json:
        print_json(report.as_json())
    elif not quiet:
        _print_report(report)


def _print_report(report: LoopReport) -> None:
    machine = report.machine
    place = machine.accelerator or "the CPU, no accelerator was used"
    print_fact(
        f"ran on {place}: encoding in {report.dtype}, steps in {report.step_dtype}; "
        f"{machine.cpu}, torch {machine.torch}"
    )
    for result in report.results:
        _print_result(result)
    print_fact("reading files is not counted")


def _print_result(result: LoopResult) -> None:
    title = (
        f"{result.transformer} ({result.parameters / 1e6:.0f} M parameters), {result.case}, "
        f"{result.tokens} tokens each"
    )
    rows = [
        _row("step, cached latents", result, result.cached),
        _row("step, encoding on the fly", result, result.on_the_fly),
        _row("encoding alone", result, result.encoding),
    ]
    print_table(title, ["", "ms", "p10-p90", "images/s"], rows)
    share = result.share.median
    print_fact(
        f"encoding is {share:.1%} of a step on the fly: caching would make training "
        f"{1 / (1 - share):.2f}x as fast"
    )
    print_fact(_advice(result))


def _row(label: str, result: LoopResult, time: Spread) -> list[str]:
    images = 1000 * result.case.batch / time.median
    return [label, f"{time.median:.1f}", f"{time.p10:.1f}-{time.p90:.1f}", f"{images:.2f}"]


def _advice(result: LoopResult) -> str:
    from stae_cli.benchmark.loop import WORTHWHILE

    verdict = "pays" if result.caching_pays else "is not worth it"
    millions = result.parameters_where_it_pays / 1e6
    pixels = result.case.width * result.case.height * result.case.batch
    return (
        f"caching {verdict} here: it does where encoding is {WORTHWHILE:.0%} of a step or more, "
        f"by this measure below about {millions:.0f} M parameters. A cache takes "
        f"{result.latent_bytes / 1e6:.2f} MB an image; without one, files must be read at "
        f"{pixels / result.on_the_fly.median / 1000:.1f} megapixels/s"
    )

"""`stae stats`: figures of stored latents that training on them needs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stae_cli.cli import options as opt
from stae_cli.cli.console import (
    print_error,
    print_fact,
    print_json,
    print_table,
    print_warning,
    progress_bar,
)
from stae_cli.cli.report import ALL_GOOD, SOME_FAILED

if TYPE_CHECKING:
    from stae_cli.latents.moments import Statistics
    from stae_cli.verify.stats import Surveyed

Plot = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Draw them as a chart: a .png or .svg file."),
]


def stats(
    sources: opt.LatentSources,
    plot: Plot = None,
    workers: opt.Workers = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> int:
    """Compute mean, deviation, shift and scale, extremes and correlations of stored latents.

    Damaged latents are listed and skipped; exits 3 if there are any.
    """
    from stae_cli.verify.stats import survey

    if plot is not None:
        from stae_cli.charts import check_target

        check_target(plot)
    with progress_bar(None, what="stats", quiet=quiet) as advance:
        surveyed = survey(sources, workers=workers, advance=advance)
    for problem in surveyed.problems:
        print_error(f"{problem.key}: {problem.reason}")
    if surveyed.repeated:
        print_warning(
            f"{surveyed.repeated} latents repeat the key of another one; all of them count"
        )
    if as_json:
        print_json(_summary(surveyed))
    elif surveyed.statistics is not None:
        _print_statistics(surveyed, surveyed.statistics)
    if plot is not None:
        from stae_cli.verify.chart import draw

        draw(surveyed, plot)
    return SOME_FAILED if surveyed.problems else ALL_GOOD


def _print_statistics(surveyed: Surveyed, statistics: Statistics) -> None:
    rows = [
        (
            str(channel),
            f"{mean:.5f}",
            f"{std:.5f}",
            f"{largest:.3f}",
            _neighbour(statistics, channel),
        )
        for channel, (mean, std, largest) in enumerate(
            zip(statistics.mean, statistics.std, statistics.largest_per_channel, strict=True)
        )
    ]
    columns = ("channel", "mean", "std", "max |z|", "most correlated with")
    print_table("latents by channel", columns, rows)
    scale = "-" if statistics.scale is None else f"{statistics.scale:.5f}"
    print_fact(f"shift {statistics.shift:.5f}, scale {scale}: (z - shift) * scale has variance 1")
    print_fact(f"max |z| {statistics.largest:.3f}")
    print_fact(
        f"{surveyed.latents} latents of {statistics.positions} positions in {surveyed.files} "
        f"files, made with {surveyed.weights} ({surveyed.weights_sha256[:12]})"
    )


def _neighbour(statistics: Statistics, channel: int) -> str:
    """The other channel with the strongest correlation, and that correlation."""
    others = [
        (abs(value), value, other)
        for other, value in enumerate(statistics.correlation[channel])
        if other != channel and value is not None
    ]
    if not others:
        return "-"
    _, value, other = max(others)
    return f"{other} ({value:+.3f})"


def _summary(surveyed: Surveyed) -> dict[str, Any]:
    return {
        "latents": surveyed.latents,
        "files": surveyed.files,
        "repeated": surveyed.repeated,
        "weights": surveyed.weights,
        "weights_sha256": surveyed.weights_sha256,
        **(asdict(surveyed.statistics) if surveyed.statistics else {}),
        "invalid": [{"file": p.key, "reason": p.reason} for p in surveyed.problems],
    }

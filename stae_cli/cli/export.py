"""`stae export`: stored latents in the formats that trainers read."""

# Not `from __future__ import annotations`: Typer would evaluate each string eight times.
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from stae_cli.cli import options as opt
from stae_cli.cli.console import print_json, print_note, print_warning, progress_bar
from stae_cli.cli.report import ALL_GOOD

FormatName = Literal["lightningdit", "webdataset", "parquet", "npy", "fast-dit", "mar"]
Normalize = Literal["auto", "none", "scalar", "channel"]

Sources = Annotated[
    list[str], typer.Argument(metavar="SOURCE", help="Latent files, or folders of them.")
]
To = Annotated[FormatName, typer.Option("--to", help="Who reads it.")]
NormalizeOption = Annotated[
    Normalize,
    typer.Option(
        "--normalize",
        help="To mean 0 and deviation 1, by one number for all or for each channel; auto: "
        "channel for npy, fast-dit and mar, whose readers do not, else none.",
    ),
]
Stats = Annotated[
    Path | None,
    typer.Option(
        "--stats",
        metavar="FILE",
        help="Normalize by the statistics of `stae stats --json` or of another export.",
        show_default=False,
    ),
]
PerFile = Annotated[
    int,
    typer.Option("--per-file", metavar="N", min=1, help="Latents per file, where many share one."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in DEST.")]


def export(
    sources: Sources,
    dest: opt.Dest,
    to: To,
    normalize: NormalizeOption = "auto",
    stats: Stats = None,
    per_file: PerFile = 10_000,
    overwrite: Overwrite = False,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> int:
    """Write stored latents as files that trainers read, with captions and labels.

    DEST appears when everything is written, or not at all.
    """
    from stae_cli.export import run

    settings = run.ExportSettings(
        form=to,
        normalize=None if normalize == "auto" else normalize,
        stats=stats,
        per_file=per_file,
        overwrite=overwrite,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with progress_bar(None, what="export", quiet=quiet) as advance:
            exported = run.export(sources, dest, settings, advance=advance)
    for warning in caught:  # of latents whose sources are gone
        print_warning(str(warning.message))
    if not quiet:
        how = "raw" if exported.normalize == "none" else f"normalised by {exported.normalize}"
        print_note(
            f"exported {exported.latents} latents ({how}) to {exported.dest}: {exported.files} "
            f"files, {exported.size / 1e6:.2f} MB, {exported.latents / exported.seconds:.0f} "
            "latents/s"
        )
    if as_json:
        print_json(asdict(exported))
    return ALL_GOOD

"""`stae decode`: latents to pictures."""

# Not `from __future__ import annotations`: Typer would evaluate each string eight times.
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stae_cli.cli import options as opt
from stae_cli.cli.console import print_note, print_warning, progress_bar
from stae_cli.cli.engine import (
    Actors,
    EngineOption,
    MaxActors,
    MinActors,
    RayAddress,
    dtype_of,
    parse_place,
)
from stae_cli.cli.report import finish

if TYPE_CHECKING:
    from stae_cli.runs.grid import Grid as WrittenGrid

Format = Literal["png", "webp", "jpg"]
FormatOption = Annotated[
    Format, opt.file_option("--format", help="File format of the images; png is lossless.")
]
Grid = Annotated[
    bool, opt.file_option("--grid", help="Also write all pictures side by side, as `grid.png`.")
]
foreign_option = partial(typer.Option, rich_help_panel="Latents of other programs")
Stats = Annotated[
    Path | None,
    foreign_option(
        "--stats",
        metavar="FILE",
        help="Undo normalisation per channel, z * std + mean, with the statistics of `stae stats "
        "--json`, of a latents_stats.pt or of a checkpoint.",
        show_default=False,
    ),
]
Shift = Annotated[
    float | None,
    foreign_option("--shift", metavar="S", help="Undo (z - S) * K: z / K + S.", show_default=False),
]
Scale = Annotated[
    float | None,
    foreign_option("--scale", metavar="K", help="The K of --shift.", show_default=False),
]


def decode(
    sources: opt.Sources,
    dest: opt.Dest,
    weights: opt.RecordedWeights = None,
    format: FormatOption = "png",  # noqa: A002
    grid: Grid = False,
    stats: Stats = None,
    shift: Shift = None,
    scale: Scale = None,
    overwrite: opt.Overwrite = False,
    device: opt.Devices = "auto",
    dtype: opt.ComputeDtype = "auto",
    batch_patches: opt.BatchPatches = None,
    workers: opt.ReadersAndWriters = None,
    engine: EngineOption = "local",
    ray_address: RayAddress = None,
    min_actors: MinActors = 1,
    max_actors: MaxActors = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> int:
    """Decode latents (files, folders) to images of the original size.

    Latents of other programs (.npy, .npz, .pt, .pth, .safetensors) are read too, with `--weights`.
    Finished outputs are skipped, so an interrupted run continues where it stopped.
    """
    from stae_cli.foreign.normalised import undo_of
    from stae_cli.runs import decode as running

    place = parse_place(device, engine, Actors(ray_address, min_actors, max_actors))
    settings = running.DecodeSettings(
        format=format,
        overwrite=overwrite,
        workers=workers,
        grid=grid,
        undo=undo_of(stats, shift, scale),
        statistics=stats,
    )
    plan = running.plan_decode(sources, dest, settings, weights=weights)
    for note in plan.notes:
        print_warning(note)
    crew = None
    if plan.latents:
        from stae_cli.checkpoints.checkpoint import find_by_fingerprint

        load = partial(
            find_by_fingerprint,
            plan.weights_sha256,
            name=plan.weights,
            architecture=plan.architecture,
            asked=weights,
        )
        dtype = dtype_of(plan.destination, dtype, overwrite=overwrite)
        crew, _ = place.workers(load, dtype, batch_patches)
    with progress_bar(plan.total, what="decode", quiet=quiet) as advance:
        tally = running.decode(plan, crew, advance=advance)
    codec = crew.codec if crew else None
    facts: dict[str, Any] = place.facts(dtype)
    if grid:
        facts |= _written_grid(running.grid_of(plan), quiet=quiet)
    return finish(tally, plan, codec, verb="decoded", quiet=quiet, as_json=as_json, extra=facts)


def _written_grid(grid: "WrittenGrid", *, quiet: bool) -> dict[str, Any]:
    """Says where the grid is; what the JSON says of it."""
    if not quiet and grid.shown:
        part = f"the first {grid.shown} of " if grid.shown < grid.total else ""
        print_note(f"the grid {grid.place} shows {part}{grid.total} pictures")
    elif not quiet:
        print_note("no grid: " + ("a picture is too large for it" if grid.total else "no pictures"))
    return {"grid": {"file": grid.place if grid.shown else None, "pictures": grid.shown}}

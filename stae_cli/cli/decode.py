"""`stae decode`: latents to pictures."""

# Not `from __future__ import annotations`: Typer would evaluate each string eight times.
from functools import partial
from typing import Annotated, Literal

from stae_cli.cli import options as opt
from stae_cli.cli.console import progress_bar
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

Format = Literal["png", "webp", "jpg"]
FormatOption = Annotated[
    Format, opt.file_option("--format", help="File format of the images; png is lossless.")
]


def decode(
    sources: opt.Sources,
    dest: opt.Dest,
    weights: opt.RecordedWeights = None,
    format: FormatOption = "png",  # noqa: A002
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

    Finished outputs are skipped, so an interrupted run continues where it stopped.
    """
    from stae_cli.runs import decode as running

    place = parse_place(device, engine, Actors(ray_address, min_actors, max_actors))
    settings = running.DecodeSettings(format=format, overwrite=overwrite, workers=workers)
    plan = running.plan_decode(sources, dest, settings)
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
    facts = place.facts(dtype)
    return finish(tally, plan, codec, verb="decoded", quiet=quiet, as_json=as_json, extra=facts)

"""`stae decode`: latents to pictures."""

from __future__ import annotations

import os
from enum import StrEnum
from functools import partial
from typing import Annotated

import typer

from stae_cli.cli.console import progress_bar
from stae_cli.cli.engine import (
    Engine,
    EngineOption,
    MaxActors,
    MinActors,
    RayAddress,
    parse_place,
)
from stae_cli.cli.options import (
    WEIGHTS_HELP,
    AsJson,
    BatchPatches,
    ComputeDtype,
    Dest,
    Devices,
    Dtype,
    Overwrite,
    Quiet,
    ReadersAndWriters,
    Sources,
)
from stae_cli.cli.report import finish


class Format(StrEnum):
    """File formats of pictures; png keeps every pixel."""

    png = "png"
    webp = "webp"
    jpg = "jpg"


RecordedWeights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="NAME",
        envvar="STAE_WEIGHTS",
        help=f"{WEIGHTS_HELP} By default the one that the latents record.",
    ),
]


def decode(
    sources: Sources,
    dest: Dest,
    weights: RecordedWeights = None,
    device: Devices = "auto",
    dtype: ComputeDtype = Dtype.auto,
    format: Annotated[Format, typer.Option(help="File format of the pictures.")] = Format.png,  # noqa: A002
    batch_patches: BatchPatches = None,
    workers: ReadersAndWriters = None,
    engine: EngineOption = Engine.local,
    ray_address: RayAddress = None,
    min_actors: MinActors = 1,
    max_actors: MaxActors = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Decode latents (files, folders) to pictures of the original size.

    What is done already is skipped, so an interrupted run goes on where it stopped.
    """
    from stae_cli.runs import decode as running

    place = parse_place(
        device, engine, os.environ,
        address=ray_address, min_actors=min_actors, max_actors=max_actors,
    )  # fmt: skip
    settings = running.DecodeSettings(format=format.value, overwrite=overwrite, workers=workers)
    plan = running.plan_decode(sources, dest, settings)
    crew = None
    if plan.latents:
        from stae_cli.checkpoints.recorded import find_that_made

        load = partial(
            find_that_made,
            plan.weights,
            plan.weights_sha256,
            architecture=plan.architecture,
            asked=weights,
        )
        crew, _ = place.workers(load, dtype, batch_patches)
    with progress_bar(plan.total, what="decode", quiet=quiet) as advance:
        tally = running.decode(plan, crew, advance=advance)
    codec = crew.codec if crew else None
    facts = place.facts(dtype)
    return finish(tally, plan, codec, verb="decoded", quiet=quiet, as_json=as_json, extra=facts)

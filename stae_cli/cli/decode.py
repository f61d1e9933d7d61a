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
    parse_dtype,
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
    from stae_cli.runs.decode_plan import DecodeSettings, plan_decode

    place = parse_place(
        device, engine, os.environ,
        address=ray_address, min_actors=min_actors, max_actors=max_actors,
    )  # fmt: skip
    settings = DecodeSettings(format=format.value, overwrite=overwrite, workers=workers)
    plan = plan_decode(sources, dest, settings)
    codec = maker = None
    if plan.outputs:
        from stae_cli.checkpoints.checkpoint import find_by_fingerprint
        from stae_cli.codec.device import pick_device
        from stae_cli.runs.workers import CodecMaker

        load = partial(
            find_by_fingerprint,
            plan.weights_sha256,
            name=plan.weights,
            architecture=plan.architecture,
            asked=weights,
        )
        chosen = None if place.workers else pick_device(place.device)
        checkpoint = load()
        maker = CodecMaker(load, checkpoint.fingerprint, parse_dtype(dtype), batch_patches)
        if chosen is not None:
            codec = maker.codec_of(checkpoint, chosen)
    with progress_bar(plan.total, what="decode", quiet=quiet) as advance:
        if place.workers and maker:
            report = running.decode_with(place.workers, plan, maker, advance=advance)
        else:
            report = running.decode(plan, codec, advance=advance)
    facts = place.facts(dtype)
    return finish(report, plan, codec, verb="decoded", quiet=quiet, as_json=as_json, extra=facts)

"""`stae decode`: latents to pictures."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from stae_cli.cli.console import progress_bar
from stae_cli.cli.options import (
    WEIGHTS_HELP,
    AsJson,
    BatchPatches,
    ComputeDtype,
    Dest,
    Device,
    Dtype,
    Overwrite,
    Quiet,
    Sources,
    Workers,
    parse_device,
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
    device: Device = "auto",
    dtype: ComputeDtype = Dtype.auto,
    format: Annotated[Format, typer.Option(help="File format of the pictures.")] = Format.png,  # noqa: A002
    batch_patches: BatchPatches = None,
    workers: Workers = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Decode latents (files, folders) to pictures of the original size.

    What is done already is skipped, so an interrupted run goes on where it stopped.
    """
    from stae_cli.pipeline.decode import DecodeSettings, plan_decode
    from stae_cli.pipeline.decode import decode as run

    device = parse_device(device)
    settings = DecodeSettings(format=format.value, overwrite=overwrite, workers=workers)
    plan = plan_decode(sources, dest, settings)
    codec = None
    if plan.outputs:
        from stae_cli.model.checkpoint import load_that_made
        from stae_cli.model.codec import pick_device
        from stae_cli.model.pixels import PixelCodec

        place = pick_device(device)
        checkpoint = load_that_made(
            plan.weights, plan.weights_sha256, architecture=plan.architecture, asked=weights
        )
        codec = PixelCodec(
            checkpoint.model(),
            device=place,
            dtype=parse_dtype(dtype),
            batch_patches=batch_patches,
        )
    with progress_bar(plan.total, what="decode", quiet=quiet) as advance:
        report = run(plan, codec, advance=advance)
    return finish(report, plan, codec, verb="decoded", quiet=quiet, as_json=as_json)

"""`stae encode`: images to latents."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated, Literal

import typer

from stae_cli.cli.console import progress_bar
from stae_cli.cli.options import (
    AsJson,
    BatchPatches,
    ComputeDtype,
    Dest,
    Device,
    Dtype,
    KeepExtension,
    Overwrite,
    Quiet,
    Sources,
    Weights,
    Workers,
    parse_device,
    parse_dtype,
)
from stae_cli.cli.prep import (
    Background,
    Edges,
    EdgesOption,
    MaxPixels,
    ShortSide,
    Square,
    parse_prep,
)
from stae_cli.cli.report import finish
from stae_cli.cli.share import UnitCount, UnitRank, local_device, parse_share
from stae_cli.model.weights import DEFAULT_WEIGHTS

LARGEST_SHARD = 10_000  # headers of more are slow to read

ShardSize = Annotated[
    int,
    typer.Option(
        "--shard-size", min=0, max=LARGEST_SHARD, help="Images to a file; 0: a file for each."
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first failure.")]


class SaveDtype(StrEnum):
    """What latents are stored in."""

    float16 = "float16"
    float32 = "float32"


def encode(
    sources: Sources,
    dest: Dest,
    weights: Weights = DEFAULT_WEIGHTS,
    device: Device = "auto",
    dtype: ComputeDtype = Dtype.auto,
    save_dtype: Annotated[SaveDtype, typer.Option(help="Store latents in this dtype.")] = (
        SaveDtype.float16
    ),
    edges: EdgesOption = Edges.pad,
    short_side: ShortSide = None,
    max_pixels: MaxPixels = None,
    square: Square = None,
    background: Background = "white",
    shard_size: ShardSize = 0,
    keep_extension: KeepExtension = False,
    batch_patches: BatchPatches = None,
    workers: Workers = None,
    unit_rank: UnitRank = None,
    unit_count: UnitCount = None,
    strict: Strict = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Encode images (files, folders, tars) to latents, one .safetensors each or many to a shard.

    What is done already is skipped, so an interrupted run goes on where it stopped.
    """
    from stae_cli.pipeline.encode import EncodeSettings, plan_encode
    from stae_cli.pipeline.encode import encode as run

    device = local_device(parse_device(device), os.environ)
    stored: Literal["float16", "float32"] = save_dtype.value
    settings = EncodeSettings(
        prep=parse_prep(edges, short_side, max_pixels, square, background),
        save_dtype=stored,
        shard_size=shard_size,
        keep_extension=keep_extension,
        overwrite=overwrite,
        strict=strict,
        workers=workers,
        share=parse_share(unit_rank, unit_count, os.environ),
    )
    plan = plan_encode(sources, dest, settings)

    from stae_cli.model.checkpoint import load_checkpoint
    from stae_cli.model.codec import pick_device
    from stae_cli.model.pixels import PixelCodec

    place = pick_device(device)
    checkpoint = load_checkpoint(weights)
    codec = PixelCodec(
        checkpoint.model(), device=place, dtype=parse_dtype(dtype), batch_patches=batch_patches
    )
    with progress_bar(plan.total, what="encode", quiet=quiet) as advance:
        report = run(plan, checkpoint, codec, advance=advance)
    return finish(report, plan, codec, verb="encoded", quiet=quiet, as_json=as_json)

"""`stae encode`: images to latents."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stae_cli.checkpoints.names import DEFAULT_WEIGHTS
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
    AsJson,
    BatchPatches,
    ComputeDtype,
    Devices,
    Dtype,
    KeepExtension,
    Overwrite,
    Quiet,
    ReadersAndWriters,
    Weights,
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
from stae_cli.cli.share import UnitCount, UnitRank, parse_share
from stae_cli.errors import UsageError

if TYPE_CHECKING:
    from stae_cli.storage.lists import SourceList

REMOTE_SHARD = 256  # stores are slow with small objects
LARGEST_SHARD = 10_000  # headers of more are slow to read

ImageSources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE",
        help="Files, folders, tars or URLs of them; may be left out with --from-list alone.",
        default_factory=list,  # a `--from-list` may stand in
        show_default=False,
    ),
]
LatentDest = Annotated[
    str, typer.Argument(metavar="DEST", help="Folder for the results, made if absent; or a URL.")
]
FromList = Annotated[
    str | None,
    typer.Option(
        "--from-list",
        metavar="FILE",
        help="Read paths from FILE, one a line, relative to its folder; `-`: from stdin.",
        show_default=False,
    ),
]
ShardSize = Annotated[
    int | None,
    typer.Option(
        "--shard-size",
        min=0,
        max=LARGEST_SHARD,
        help="Images to a file; 0: a file for each. By default 0 in folders, 256 on stores.",
        show_default=False,
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first failure.")]


class SaveDtype(StrEnum):
    """What latents are stored in."""

    float16 = "float16"
    float32 = "float32"


def encode(
    sources: ImageSources,
    dest: LatentDest,
    weights: Weights = DEFAULT_WEIGHTS,
    device: Devices = "auto",
    dtype: ComputeDtype = Dtype.auto,
    save_dtype: Annotated[SaveDtype, typer.Option(help="Store latents in this dtype.")] = (
        SaveDtype.float16
    ),
    edges: EdgesOption = Edges.pad,
    short_side: ShortSide = None,
    max_pixels: MaxPixels = None,
    square: Square = None,
    background: Background = "white",
    from_list: FromList = None,
    shard_size: ShardSize = None,
    keep_extension: KeepExtension = False,
    batch_patches: BatchPatches = None,
    workers: ReadersAndWriters = None,
    unit_rank: UnitRank = None,
    unit_count: UnitCount = None,
    engine: EngineOption = Engine.local,
    ray_address: RayAddress = None,
    min_actors: MinActors = 1,
    max_actors: MaxActors = None,
    strict: Strict = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Encode images (files, folders, tars, URLs) to latents, a .safetensors each or in shards.

    What is done already is skipped, so an interrupted run goes on where it stopped.
    """
    from stae_cli.runs.encode_plan import EncodeSettings, plan_encode
    from stae_cli.storage.fsspec_store import is_url

    place = parse_place(
        device, engine, os.environ,
        address=ray_address, min_actors=min_actors, max_actors=max_actors,
    )  # fmt: skip
    stored: Literal["float16", "float32"] = save_dtype.value
    settings = EncodeSettings(
        prep=parse_prep(edges, short_side, max_pixels, square, background),
        save_dtype=stored,
        shard_size=(REMOTE_SHARD if is_url(dest) else 0) if shard_size is None else shard_size,
        keep_extension=keep_extension,
        overwrite=overwrite,
        strict=strict,
        workers=workers,
        share=parse_share(unit_rank, unit_count, os.environ),
    )
    plan = plan_encode(sources, dest, settings, listed=_listed(sources, from_list))

    from stae_cli.checkpoints.checkpoint import load_checkpoint
    from stae_cli.runs import encode as running

    crew, checkpoint = place.workers(partial(load_checkpoint, weights), dtype, batch_patches)
    with progress_bar(plan.total, what="encode", quiet=quiet) as advance:
        tally = running.encode(plan, checkpoint, crew, advance=advance)
    facts = place.facts(dtype)
    return finish(
        tally, plan, crew.codec, verb="encoded", quiet=quiet, as_json=as_json, extra=facts
    )


def _listed(sources: list[str], from_list: str | None) -> SourceList | None:
    """What `--from-list` names.

    Raises:
        UsageError: there is no such list; or nothing at all to encode.
    """
    from stae_cli.storage.lists import parse_list, read_list

    if from_list is None:
        if not sources:
            raise UsageError("nothing to encode", "give SOURCE and DEST, or `--from-list` and DEST")
        return None
    if from_list == "-":
        return parse_list(sys.stdin.buffer.read(), Path())
    return read_list(Path(from_list))

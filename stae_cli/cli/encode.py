"""`stae encode`: images to latents."""

# Not `from __future__ import annotations`: Typer would evaluate each string eight times.
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import typer

from stae_cli.checkpoints.names import DEFAULT_WEIGHTS
from stae_cli.cli import options as opt
from stae_cli.cli.console import print_note, progress_bar
from stae_cli.cli.engine import (
    Actors,
    EngineOption,
    MaxActors,
    MinActors,
    RayAddress,
    UnitCount,
    UnitRank,
    dtype_of,
    parse_place,
)
from stae_cli.cli.launchers import parse_share
from stae_cli.cli.lists import FromList, listed_inputs
from stae_cli.cli.report import finish, part_of
from stae_cli.errors import UsageError

REMOTE_SHARD = 256  # object stores are slow with small objects
NAMED = 3  # latents in a note
LARGEST_SHARD = 10_000  # larger headers are slow to read

SaveDtype = Literal["float16", "float32"]
Compare = Literal["time", "content"]

ImageSources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE",
        help="Files, folders, tars, Parquet files or URLs; optional with --from-list.",
        default_factory=list,
        show_default=False,
    ),
]
LatentDest = Annotated[
    str, typer.Argument(metavar="DEST", help="Folder for the results, created if absent; or a URL.")
]
Flip = Annotated[
    bool,
    opt.image_option(
        "--flip", help="Encode the mirrored picture too, beside the picture: twice the work."
    ),
]
SaveDtypeOption = Annotated[
    SaveDtype,
    opt.file_option("--save-dtype", metavar="DTYPE", help="Store latents in float16 or float32."),
]
ShardSize = Annotated[
    int | None,
    opt.file_option(
        "--shard-size",
        metavar="N",
        min=0,
        max=LARGEST_SHARD,
        help="Images per file; 0 writes one file per image. By default 0 in folders, 256 on "
        "object stores.",
        show_default=False,
    ),
]
KeepExtension = Annotated[
    bool,
    opt.file_option(
        "--keep-extension", help="Name outputs cat.jpg.safetensors, not cat.safetensors."
    ),
]
Prune = Annotated[
    bool,
    opt.file_option("--prune", help="Remove the latents of sources that are gone."),
]
CompareOption = Annotated[
    Compare,
    opt.file_option(
        "--compare",
        help="How a source is compared with its latent: size and time, or content (reads it).",
    ),
]
Check = Annotated[
    bool,
    opt.file_option("--check", help="Read finished latents too; encode damaged ones again."),
]
Captions = Annotated[
    bool,
    opt.file_option(
        "--captions/--no-captions",
        help="Keep captions and labels that lie beside the images with the latents.",
    ),
]
ClassFolders = Annotated[
    bool,
    opt.file_option(
        "--class-folders", help="Number the folders of SOURCE by name: an image's label."
    ),
]
ImageColumn = Annotated[
    str,
    opt.file_option(
        "--image-column", metavar="NAME", help="Column of Parquet files, if several hold images."
    ),
]
Strict = Annotated[bool, opt.file_option("--strict", help="Stop at the first failure.")]


def encode(
    sources: ImageSources,
    dest: LatentDest,
    weights: opt.Weights = DEFAULT_WEIGHTS,
    edges: opt.EdgesOption = "pad",
    short_side: opt.ShortSide = None,
    max_pixels: opt.MaxPixels = None,
    square: opt.Square = None,
    adm_crop: opt.AdmCrop = None,
    flip: Flip = False,
    background: opt.Background = "white",
    from_list: FromList = None,
    save_dtype: SaveDtypeOption = "float16",
    shard_size: ShardSize = None,
    keep_extension: KeepExtension = False,
    overwrite: opt.Overwrite = False,
    prune: Prune = False,
    compare: CompareOption = "time",
    check: Check = False,
    strict: Strict = False,
    captions: Captions = True,
    class_folders: ClassFolders = False,
    image_column: ImageColumn = "",
    device: opt.Devices = "auto",
    dtype: opt.ComputeDtype = "auto",
    batch_patches: opt.BatchPatches = None,
    workers: opt.ReadersAndWriters = None,
    unit_rank: UnitRank = None,
    unit_count: UnitCount = None,
    engine: EngineOption = "local",
    ray_address: RayAddress = None,
    min_actors: MinActors = 1,
    max_actors: MaxActors = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> int:
    """Encode images (files, folders, tars, Parquet, URLs) to .safetensors: one each, or shards.

    Finished outputs are skipped, so an interrupted run continues where it stopped.
    """
    from stae_cli.runs.encode_plan import EncodeSettings, plan_encode
    from stae_cli.storage.fsspec_store import is_url

    place = parse_place(device, engine, Actors(ray_address, min_actors, max_actors))
    settings = EncodeSettings(
        prep=opt.parse_prep(
            *(edges, short_side, max_pixels, square, adm_crop, background), flip=flip
        ),
        save_dtype=save_dtype,
        shard_size=(REMOTE_SHARD if is_url(dest) else 0) if shard_size is None else shard_size,
        keep_extension=keep_extension,
        overwrite=overwrite,
        prune=prune,
        compare=compare,
        check=check,
        strict=strict,
        captions=captions,
        class_folders=class_folders,
        image_column=image_column,
        workers=workers,
        share=parse_share(unit_rank, unit_count),
    )
    if prune and settings.share.count > 1:
        raise UsageError(
            "`--prune` is for a run that one process begins", "run it without a share first"
        )
    if class_folders and not captions:
        raise UsageError("`--no-captions` reads no labels", "omit it, or `--class-folders`")
    if from_list is None and not sources:
        raise UsageError("nothing to encode", "give SOURCE and DEST, or `--from-list` and DEST")
    plan = plan_encode(sources, dest, settings, listed=listed_inputs(from_list))

    from stae_cli.checkpoints.checkpoint import load_checkpoint
    from stae_cli.runs import encode as running

    dtype = dtype_of(plan.destination, dtype, overwrite=overwrite)
    crew, checkpoint = place.workers(partial(load_checkpoint, weights), dtype, batch_patches)
    with progress_bar(plan.total, what="encode", quiet=quiet) as advance:
        tally = running.encode(plan, checkpoint, crew, advance=advance)
    orphans = [orphan.label for orphan in (*plan.present.orphans, *tally.orphans)]
    if orphans and not quiet:
        print_note(_about_orphans(orphans, prune=prune))
    gone = {"pruned" if prune else "orphaned": orphans}
    facts = place.facts(dtype) | gone | {"part": part_of(tally)}
    return finish(
        tally, plan, crew.codec, verb="encoded", quiet=quiet, as_json=as_json, extra=facts
    )


def _about_orphans(orphans: Sequence[str], *, prune: bool) -> str:
    named = ", ".join(orphans[:NAMED])
    more = f" and {len(orphans) - NAMED} more" if orphans[NAMED:] else ""
    if prune:
        return f"removed the latents of sources that are gone: {named}{more}"
    return f"the sources of these latents are gone (--prune removes them): {named}{more}"

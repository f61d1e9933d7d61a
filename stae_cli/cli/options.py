"""Options that several commands share, their sections in the help, and what their texts mean."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from stae_cli.cli.console import show_log
from stae_cli.errors import UsageError

if TYPE_CHECKING:
    import torch

    from stae_cli.images.resize import Prep

WEIGHTS_HELP = (
    "Checkpoint: `stupidae` (published, from the hub), `builtin`, a name from `stae weights list`, "
    "a .safetensors/.pt/.pth file, or hf://OWNER/REPO/FILE[@REVISION]."
)
DEVICES = "auto, cuda, cuda:N, mps or cpu"
SIDE_DIGITS = 6  # longest side that a size may name

GENERAL = "General options"  # those without a section of their own in the help
NAME_COLUMN = 24  # longer names of options have their help on the next line

# Options of each section of the help.
network_option = partial(typer.Option, rich_help_panel="Network")
image_option = partial(typer.Option, rich_help_panel="Images")
file_option = partial(typer.Option, rich_help_panel="Files")
machine_option = partial(typer.Option, rich_help_panel="Machine")
sharing_option = partial(typer.Option, rich_help_panel="Sharing work")

# Options whose help depends on the command.
weights_option = partial(network_option, "--weights", metavar="NAME", envvar="STAE_WEIGHTS")
device_option = partial(machine_option, "--device", metavar="DEVICE")
workers_option = partial(machine_option, "--workers", metavar="N", min=1)

Dtype = Literal["auto", "float16", "bfloat16", "float32"]
Edges = Literal["pad", "crop", "error"]

Sources = Annotated[
    list[str], typer.Argument(metavar="SOURCE", help="Files, folders or URLs.", show_default=False)
]
LatentSources = Annotated[
    list[str], typer.Argument(metavar="SOURCE", help="Latent files, folders of them, or URLs.")
]
Dest = Annotated[
    str, typer.Argument(metavar="DEST", help="Folder for the results, created if absent.")
]
Weights = Annotated[str, weights_option(help=WEIGHTS_HELP)]
RecordedWeights = Annotated[
    str | None,
    weights_option(help=f"{WEIGHTS_HELP} By default the one that the latents record."),
]
ArchitectureName = Annotated[
    str | None,
    network_option(
        "--architecture",
        metavar="NAME",
        help="Network of the family: f8c16 (published), f8c32, ...; `stae flops --all` lists them.",
        show_default=False,
    ),
]
Device = Annotated[str, device_option(help=f"{DEVICES}.")]
Devices = Annotated[
    str,
    device_option(
        help=f"{DEVICES}; cuda:all or a comma-separated list runs one process per device."
    ),
]
ComputeDtype = Annotated[
    Dtype,
    machine_option(
        "--dtype",
        metavar="DTYPE",
        help="float16, bfloat16, float32, or auto: float16 on CUDA, else float32.",
    ),
]
BatchPatches = Annotated[
    int | None,
    machine_option(
        "--batch-patches",
        metavar="N",
        min=1,
        max=2**31 - 1,
        help="8x8 patches on the device at once.",
    ),
]
Workers = Annotated[int | None, workers_option(help="Reading threads.")]
ReadersAndWriters = Annotated[
    int | None, workers_option(help="Reading threads, and as many writing ones.")
]
EdgesOption = Annotated[
    Edges,
    image_option(
        "--edges",
        help="Sides that are not a multiple of 8 (or 32): pad (repeat the edge; decode crops "
        "back), crop (centre), or error.",
    ),
]
ShortSide = Annotated[
    int | None,
    image_option("--short-side", metavar="N", min=1, help="Shrink the shorter side to N pixels."),
]
MaxPixels = Annotated[
    int | None,
    image_option("--max-pixels", metavar="N", min=64, help="Shrink to at most N pixels."),
]
Square = Annotated[
    int | None,
    image_option("--square", metavar="N", min=1, help="Resize and centre-crop to N x N."),
]
AdmCrop = Annotated[
    int | None,
    image_option(
        "--adm-crop",
        metavar="N",
        min=1,
        help="N x N as for figures on ImageNet: ADM's crop, which also enlarges.",
    ),
]
Background = Annotated[
    str, image_option("--background", metavar="COLOUR", help="Colour behind transparent pixels.")
]
Overwrite = Annotated[
    bool, file_option("--overwrite", help="Write every output again instead of resuming.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def _set_verbose(context: typer.Context, wanted: bool) -> bool:
    if wanted and context.params.get("quiet"):
        raise UsageError("`--verbose` and `--quiet` contradict each other", "give one of them")
    if wanted:
        context.ensure_object(dict)["verbose"] = True
        show_log()
    return wanted


Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="No progress bar, no report.",
        is_eager=True,  # so that the callback of `--verbose` sees it
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Log on stderr what is done and why, with tracebacks of unexpected errors.",
        callback=_set_verbose,
    ),
]


class SectionedCommand(TyperCommand):
    """A command whose plain help has a section for each `rich_help_panel`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_sections(self, ctx, formatter)


class SectionedGroup(TyperGroup):
    """A group whose plain help has its commands first, then a section per `rich_help_panel`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        self.format_commands(ctx, formatter)
        _write_sections(self, ctx, formatter)


def _write_sections(command: TyperCommand | TyperGroup, context: Any, formatter: Any) -> None:
    sections: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        if (record := parameter.get_help_record(context)) is None:  # hidden
            continue
        name, title = record[0], getattr(parameter, "rich_help_panel", None) or GENERAL
        if parameter.param_type_name == "argument":
            name, title = name.partition(" <")[0], "Arguments"
        row = name.ljust(NAME_COLUMN), _without_range(record[1])
        sections.setdefault(title, []).append(row)
    for title in sorted(sections, key=lambda title: title == GENERAL):  # that one last
        with formatter.section(title):
            formatter.write_dl(sections[title], col_max=NAME_COLUMN)


def _without_range(text: str) -> str:
    """Drops `[x>=1]` from a help text: a wrong number is refused with its range."""
    text, _, extras = text.rpartition("  [") if text.endswith("]") else (text, "", "")
    kept = [
        e for e in extras.rstrip("]").split("; ") if not re.fullmatch(r"[-\d.<=]*x[-\d.<>=]*", e)
    ]
    return f"{text}  [{'; '.join(kept)}]" if any(kept) else text


def parse_device(name: str) -> str:
    """The device's name, checked for its form; whether the device exists shows later.

    Raises:
        UsageError: an empty name, or an unknown kind of device.
    """
    if not name:
        raise UsageError("the name of a device is empty", f"use {DEVICES}")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise UsageError(f"unknown device `{name}`", f"use {DEVICES}")
    return name


def parse_dtype(dtype: Dtype) -> torch.dtype | None:
    """The torch dtype, or None for `auto`."""
    import torch

    return None if dtype == "auto" else getattr(torch, dtype)


def parse_prep(
    edges: Edges,
    short_side: int | None,
    max_pixels: int | None,
    square: int | None,
    adm_crop: int | None,
    background: str,
    *,
    flip: bool = False,
) -> Prep:
    """The options that prepare an image, as one description.

    Raises:
        UsageError: contradicting options, too large a square, or an unknown colour.
    """
    from stae_cli.images.read import MAX_PIXELS
    from stae_cli.images.resize import Prep, parse_background

    for name, side in (("--square", square), ("--adm-crop", adm_crop)):
        if side is not None and (short_side or max_pixels or (square and adm_crop)):
            raise UsageError(f"`{name}` sets the size by itself", "omit other options of size")
        if side is not None and side**2 > MAX_PIXELS:
            raise UsageError(
                f"`{name} {side}` is more than {MAX_PIXELS // 10**6} megapixels",
                f"give at most {math.isqrt(MAX_PIXELS)}",
            )
    return Prep(
        edges=edges,
        short_side=short_side,
        max_pixels=max_pixels,
        square=square,
        adm_crop=adm_crop,
        flip=flip,
        background=parse_background(background),
    )


def parse_size(text: str) -> tuple[int, int]:
    """`N` or `WxH` as (width, height) in pixels.

    Raises:
        UsageError: neither of them, or a side is too long.
    """
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    if match is None:
        raise UsageError(f"malformed size `{text}`", "write N or WxH, such as 1024 or 1920x1080")
    sides = match[1], match[2] or match[1]
    if max(map(len, sides)) > SIDE_DIGITS:
        raise UsageError(
            f"size `{text}` is too large", f"give sides of at most {SIDE_DIGITS} digits"
        )
    return int(sides[0]), int(sides[1])


def parse_names(text: str) -> tuple[str, ...]:
    """The names of a comma-separated list, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))

"""Options that several commands share, and what their texts mean."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stae_cli.errors import UsageError

if TYPE_CHECKING:
    import torch

    from stae_cli.images.resize import Prep

WEIGHTS_HELP = (
    "Checkpoint: `stupidae` (published, from the hub), `builtin`, a name from `stae weights list`, "
    "a .safetensors/.pt/.pth file, or hf://OWNER/REPO/FILE[@REVISION]."
)
DEVICES = "use auto, cuda, cuda:N, mps or cpu"
SIDE_DIGITS = 6  # longest side that a size may name

Dtype = Literal["auto", "float16", "bfloat16", "float32"]
Edges = Literal["pad", "crop", "error"]

Sources = Annotated[
    list[str],
    typer.Argument(metavar="SOURCE", help="Files, folders or URLs.", show_default=False),
]
Dest = Annotated[
    str, typer.Argument(metavar="DEST", help="Folder for the results, created if absent.")
]
Weights = Annotated[
    str, typer.Option("--weights", metavar="NAME", envvar="STAE_WEIGHTS", help=WEIGHTS_HELP)
]
RecordedWeights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="NAME",
        envvar="STAE_WEIGHTS",
        help=f"{WEIGHTS_HELP} By default the one that the latents record.",
    ),
]
ArchitectureName = Annotated[
    str | None,
    typer.Option(
        "--architecture",
        metavar="NAME",
        help="Network of the family: f8c16 (published), f8c32, ...; `stae flops --all` lists them.",
        show_default=False,
    ),
]
Device = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="auto, cuda, cuda:N, mps or cpu.")
]
Devices = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="auto, cuda, cuda:N, mps or cpu; cuda:all or a comma-separated list runs one process "
        "per device.",
    ),
]
ComputeDtype = Annotated[
    Dtype, typer.Option("--dtype", help="auto: float16 on CUDA, float32 elsewhere.")
]
BatchPatches = Annotated[
    int | None,
    typer.Option(
        "--batch-patches",
        metavar="N",
        min=1,
        max=2**31 - 1,
        help="8x8 patches on the device at once.",
    ),
]
Workers = Annotated[
    int | None, typer.Option("--workers", metavar="N", min=1, help="Reading threads.")
]
ReadersAndWriters = Annotated[
    int | None,
    typer.Option(
        "--workers", metavar="N", min=1, help="Reading threads, and as many writing ones."
    ),
]
EdgesOption = Annotated[
    Edges,
    typer.Option(
        "--edges",
        help="Sides that are not a multiple of 8 (or 32): pad (repeat the edge; decode crops "
        "back), crop (centre), or error.",
    ),
]
ShortSide = Annotated[
    int | None,
    typer.Option("--short-side", metavar="N", min=1, help="Shrink the shorter side to N pixels."),
]
MaxPixels = Annotated[
    int | None,
    typer.Option("--max-pixels", metavar="N", min=64, help="Shrink to at most N pixels."),
]
Square = Annotated[
    int | None,
    typer.Option("--square", metavar="N", min=1, help="Resize and centre-crop to N x N."),
]
Background = Annotated[
    str,
    typer.Option("--background", metavar="COLOUR", help="Colour behind transparent pixels."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Write every output again instead of resuming.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, no report.")]


def parse_device(name: str) -> str:
    """The device's name, checked for its form; whether the device exists shows later.

    Raises:
        UsageError: an empty name, or an unknown kind of device.
    """
    if not name:
        raise UsageError("the name of a device is empty", DEVICES)
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise UsageError(f"unknown device `{name}`", DEVICES)
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
    background: str,
) -> Prep:
    """The options that prepare an image, as one description.

    Raises:
        UsageError: contradicting options, too large a square, or an unknown colour.
    """
    from stae_cli.images.read import MAX_PIXELS
    from stae_cli.images.resize import Prep, parse_background

    if square is not None and (short_side or max_pixels):
        raise UsageError(
            "`--square` already sets the size", "omit `--short-side` and `--max-pixels`"
        )
    if square is not None and square**2 > MAX_PIXELS:
        raise UsageError(
            f"`--square {square}` is more than {MAX_PIXELS // 10**6} megapixels",
            f"give at most {math.isqrt(MAX_PIXELS)}",
        )
    return Prep(
        edges=edges,
        short_side=short_side,
        max_pixels=max_pixels,
        square=square,
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

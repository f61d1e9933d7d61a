"""Options for what is done to an image's size before it is encoded."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from stae_cli.errors import UsageError

if TYPE_CHECKING:
    from stae_cli.images.resize import Prep


class Edges(StrEnum):
    """What to do with sides that are no multiple of the patch."""

    pad = "pad"
    crop = "crop"
    error = "error"


EdgesOption = Annotated[
    Edges,
    typer.Option(
        "--edges",
        help="Sides that are no multiple of 8 (or 32): pad (repeat the edge; decode crops back), "
        "crop (centre), or error.",
    ),
]
ShortSide = Annotated[
    int | None, typer.Option("--short-side", min=1, help="Shrink to this shorter side.")
]
MaxPixels = Annotated[
    int | None, typer.Option("--max-pixels", min=64, help="Shrink to at most this many pixels.")
]
Square = Annotated[
    int | None, typer.Option("--square", min=1, help="Cover and centre-crop to N x N.")
]
Background = Annotated[
    str, typer.Option("--background", metavar="COLOUR", help="What shows through transparency.")
]


def parse_prep(
    edges: Edges,
    short_side: int | None,
    max_pixels: int | None,
    square: int | None,
    background: str,
) -> Prep:
    """The options as one description.

    Raises:
        UsageError: options that exclude each other, too large a square, or an unknown colour.
    """
    from stae_cli.images.read import MAX_PIXELS
    from stae_cli.images.resize import Prep, parse_background

    if square is not None and (short_side or max_pixels):
        raise UsageError(
            "`--square` already sets the size", "leave `--short-side` and `--max-pixels` away"
        )
    if square is not None and square**2 > MAX_PIXELS:
        raise UsageError(
            f"`--square {square}` is more than {MAX_PIXELS // 10**6} megapixels",
            f"give at most {math.isqrt(MAX_PIXELS)}",
        )
    return Prep(
        edges=edges.value,
        short_side=short_side,
        max_pixels=max_pixels,
        square=square,
        background=parse_background(background),
    )

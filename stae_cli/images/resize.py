"""Preparation: an image's pixels resized for encoding, with sides that are multiples of a patch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageColor

from stae_cli.errors import InputError, UsageError
from stae_cli.images.buffers import Buffers, Pixels
from stae_cli.images.read import MAX_PIXELS, Colour, ImageFile

WHITE = (255, 255, 255)
Edges = Literal["pad", "crop", "error"]


@dataclass(frozen=True)
class Prep:
    """What is done to images before they are encoded; all outputs of a DEST share it.

    `short_side` and `max_pixels` (before padding) shrink and never enlarge; `square` covers N x N
    and crops the centre; `adm_crop` makes N x N as for figures on ImageNet. `edges` says what
    happens to sides that are not multiples of the patch. With `flip` the mirrored picture is
    encoded too.
    """

    edges: Edges = "pad"
    short_side: int | None = None
    max_pixels: int | None = None
    square: int | None = None
    adm_crop: int | None = None
    flip: bool = False
    background: Colour = WHITE

    def describe(self) -> str:
        """Canonical JSON of what differs from the defaults; `{}` if nothing does."""
        changed: dict[str, str | int] = {}
        if self.edges != "pad":
            changed["edges"] = self.edges
        if self.background != WHITE:
            changed["background"] = "#{:02x}{:02x}{:02x}".format(*self.background)
        if self.flip:
            changed["flip"] = True
        for name in ("short_side", "max_pixels", "square", "adm_crop"):
            if (value := getattr(self, name)) is not None:
                changed[name] = value
        return json.dumps(changed, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Prepared:
    """Pixels ready to encode, and the sizes to record.

    `width` and `height` are those of `pixels` before padding; the original ones are upright.
    `flipped` are the pixels of the mirrored picture, which is padded on the same sides.
    """

    pixels: Pixels  # sides are multiples of the patch
    width: int
    height: int
    original_width: int
    original_height: int
    flipped: Pixels | None = None

    @property
    def both(self) -> list[Pixels]:
        """The pixels, and those of the mirrored picture if there are any."""
        return [self.pixels] if self.flipped is None else [self.pixels, self.flipped]


def prepare(image: ImageFile, prep: Prep, *, patch: int) -> Prepared:
    """Reads, resizes and pads or crops one image.

    Raises:
        InputError: the image cannot be read, its size is not allowed with these edges, or there is
            not enough memory for it.
    """
    try:
        pixels = _resized(image.pixels(prep.background), prep)
        if prep.edges == "error" and (pixels.shape[0] % patch or pixels.shape[1] % patch):
            raise InputError(f"{_size(pixels)} has a side that is not a multiple of {patch}")
        if prep.edges == "crop":
            pixels = _cropped(pixels, patch)
        height, width = pixels.shape[:2]
        padded = _padded(pixels, patch, image.buffers)
        flipped = _padded(pixels[:, ::-1], patch, image.buffers) if prep.flip else None
        return Prepared(padded, width, height, image.width, image.height, flipped)
    except (MemoryError, OverflowError) as error:
        raise InputError("there is not enough memory for its pixels") from error


def parse_described(text: str) -> Prep:
    """The inverse of `Prep.describe`.

    Raises:
        InputError: this version does not know it.
    """
    try:
        values = json.loads(text)
        if "background" in values:
            values["background"] = parse_background(values["background"])
        prep = Prep(**values)
        known = prep.describe() == text and _is_possible(prep)
    except (ValueError, TypeError, AttributeError, RecursionError, UsageError):
        known = False
    if not known:
        raise InputError(f"unknown preparation `{text}`")
    return prep


def _is_possible(prep: Prep) -> bool:
    """Whether `encode` has options for it; the values may be of any type."""
    given = prep.short_side, prep.max_pixels, prep.square, prep.adm_crop
    numbers = [number for number in given if number is not None]
    if not all(type(number) is int and number > 0 for number in numbers):
        return False
    side = prep.square or prep.adm_crop or 0  # they set the size alone
    if side and (len(numbers) > 1 or side**2 > MAX_PIXELS):
        return False
    return prep.edges in get_args(Edges) and type(prep.flip) is bool


def parse_background(text: str) -> Colour:
    """A colour's name or `#rrggbb`.

    Raises:
        UsageError: there is no such colour.
    """
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError as error:
        raise UsageError(
            f"unknown colour `{text}`", "use a name such as white, or #rrggbb"
        ) from error
    return red, green, blue


def _resized(pixels: Pixels, prep: Prep) -> Pixels:
    """Antialiased bicubic, by Pillow."""
    height, width = pixels.shape[:2]
    if prep.adm_crop is not None:
        return _adm_crop(pixels, prep.adm_crop)
    if prep.square is not None:
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        size = (prep.square, prep.square)
    else:
        box, size = (0.0, 0.0, float(width), float(height)), _shrunk(width, height, prep)
    if (width, height) == size:
        return pixels
    resized = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized)


def _adm_crop(pixels: Pixels, side: int) -> Pixels:
    """The crop of ADM (Dhariwal and Nichol, arXiv 2105.05233), the same pixels.

    Halved with a box filter while the shorter side is at least twice as long as wanted, then
    resized, also to more pixels, then cut at whole pixels.
    """
    image = Image.fromarray(pixels)
    while min(image.size) >= 2 * side:
        halves = image.width // 2, image.height // 2
        image = image.resize(halves, Image.Resampling.BOX)
    scale = side / min(image.size)
    sides = round(image.width * scale), round(image.height * scale)
    if max(sides) * side > MAX_PIXELS:
        raise InputError(f"{_size(pixels)} is too long and narrow to be enlarged to {side}")
    image = image.resize(sides, Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image)[top : top + side, left : left + side]


def _shrunk(width: int, height: int, prep: Prep) -> tuple[int, int]:
    scale = 1.0
    if prep.short_side is not None:
        side = min(width, height)
        scale = min(prep.short_side, side) / side
    if prep.max_pixels is not None:
        pixels = width * height
        scale = min(scale, math.sqrt(min(prep.max_pixels, pixels) / pixels))
    sides = max(1, round(width * scale)), max(1, round(height * scale))
    if prep.max_pixels is not None and sides[0] * sides[1] > prep.max_pixels:
        sides = max(1, int(width * scale)), max(1, int(height * scale))
        if 1 in sides:  # the other one alone makes too many
            sides = min(sides[0], prep.max_pixels), min(sides[1], prep.max_pixels)
    return sides


def _cropped(pixels: Pixels, patch: int) -> Pixels:
    height, width = pixels.shape[:2]
    rows, columns = height - height % patch, width - width % patch
    if not rows or not columns:
        raise InputError(f"{_size(pixels)} is smaller than one patch of {patch}x{patch}")
    top, left = (height - rows) // 2, (width - columns) // 2
    return pixels[top : top + rows, left : left + columns]


def _padded(pixels: Pixels, patch: int, buffers: Buffers) -> Pixels:
    """Extends sides to multiples of the patch, by repeating the last row and column."""
    height, width = pixels.shape[:2]
    down, across = -height % patch, -width % patch
    if not down and not across:
        return np.ascontiguousarray(pixels)
    padded = buffers.take(height + down, width + across)
    padded[:height, :width] = pixels
    padded[:height, width:] = pixels[:, -1:]
    padded[height:] = padded[height - 1]
    return padded


def _size(pixels: Pixels) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"

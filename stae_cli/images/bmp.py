"""BMP as Pillow reads it, and with any masks, small palettes, and alpha that is not one."""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

import numpy as np
from PIL import BmpImagePlugin, Image, ImagePalette

from stae_cli.errors import InputError
from stae_cli.images.lazy import Lazy

BITFIELDS, ALPHA_BITFIELDS = 3, 6  # compressions


class Bmp(BmpImagePlugin.BmpImageFile):
    """A BMP of a kind that Pillow reads."""

    def __init__(self, file: BinaryIO, name: str = "") -> None:
        super().__init__(file, name)
        file.seek(14)
        size = struct.unpack("<I", file.read(4))[0]
        (depth,) = struct.unpack("<H", file.read(24)[6 if size == 12 else 10 :][:2])
        if self.mode in ("1", "L") and (self.mode, depth) not in (("1", 1), ("L", 8)):
            # Pillow takes a palette of greys for none, but then reads pixels of another depth.
            file.seek(14 + size)
            entry = 3 if size == 12 else 4
            table = file.read(entry << depth).ljust(entry << depth, b"\0")
            self._mode = "P"
            self.palette = ImagePalette.raw("BGRX" if entry == 4 else "BGR", table)
            self.tile = [tile._replace(args=(_raw(depth, tile.args), *tile.args[1:]))
                         for tile in self.tile if isinstance(tile.args, tuple)]  # fmt: skip

    def load(self) -> Any:
        is_first = bool(self.tile)
        result = super().load()
        if is_first and self.mode == "RGBA" and self.getchannel("A").getextrema() == (0, 0):
            opaque = self.convert("RGB")  # as viewers do: some programs leave alpha out
            self.im, self._mode = opaque.im, opaque.mode
            return super().load()
        return result


def _raw(depth: int, args: tuple[Any, ...]) -> str:
    return args[0] if len(args) > 3 else {4: "P;4", 8: "P"}[depth]


def open_bmp(file: BinaryIO, name: str = "") -> Image.Image:
    """A BMP, not decoded yet.

    Raises:
        InputError: of a kind that cannot be read.
        Others: what Pillow raises on damaged files.
    """
    file.seek(0)
    head = file.read(70).ljust(70, b"\0")
    size, _, _, depth, compression = struct.unpack("<14xIii2xHI36x", head)
    masks = struct.unpack("<4I", head[54:])
    if compression not in (BITFIELDS, ALPHA_BITFIELDS) or size < 40 or depth not in (16, 32):
        masks = ()
    elif (size < 56 and compression == BITFIELDS) or not masks[3]:
        masks = masks[:3]
    if depth == 16 and len(masks) == 4:  # Pillow does not look at the last one
        return _masked(file, head, masks)
    file.seek(0)
    try:
        return Bmp(file, name)
    except OSError as error:
        if not str(error).startswith("Unsupported"):
            raise
        if masks:
            return _masked(file, head, masks)
        raise InputError(f"a BMP of a kind that cannot be read ({depth} bits, compression "
                         f"{compression}): save it as PNG") from error  # fmt: skip


def _masked(file: BinaryIO, head: bytes, masks: tuple[int, ...]) -> Image.Image:
    """A BMP whose channels are under these masks of each pixel."""
    place, width, height, depth = struct.unpack("<10xI4xii2xH40x", head)
    shape = abs(height), width, depth // 8
    return Lazy(shape[1::-1], lambda: _channels(file, place, shape, masks, height > 0))


def _channels(
    file: BinaryIO,
    place: int,
    shape: tuple[int, int, int],
    masks: tuple[int, ...],
    is_flipped: bool,
) -> Image.Image:
    """The image whose channels are under these masks; `shape`: height, width, bytes of a pixel."""
    height, width, size = shape
    stride = (width * size + 3) // 4 * 4
    file.seek(place)
    data = file.read(stride * height)
    if len(data) < stride * (height - 1) + width * size:
        raise ValueError("image file is truncated")
    rows = np.frombuffer(data.ljust(stride * height, b"\0"), f"<u{size}").reshape(height, -1)
    rows = rows[::-1, :width] if is_flipped else rows[:, :width]
    pixels = np.empty((height, width, len(masks)), np.uint8)
    for n, mask in enumerate(masks):
        shift = (mask & -mask).bit_length() - 1 if mask else 0
        peak = max(1, mask >> shift)
        levels = ((rows & mask) >> shift).astype(np.uint64)
        pixels[..., n] = (levels * 255 + peak // 2) // peak
    if len(masks) == 4 and not pixels[..., 3].any():
        pixels = pixels[..., :3].copy()  # as above
    return Image.fromarray(pixels)

"""Samples of TIFFs of every depth and layout, from strips or tiles that are packed byte by byte."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from itertools import accumulate, product
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import TiffImagePlugin

from stae_cli.images import tiff_pages as tag
from stae_cli.images.jpeg2000 import Jpeg2000
from stae_cli.images.tiff_pages import Page

Array = npt.NDArray[Any]
Tags = dict[int, tuple[int, ...]]

DEFLATE = (8, 32946)
BY_LIBTIFF = (5, 32773, 34925, 50000)  # LZW, PackBits, LZMA, Zstandard
BYTEWISE = (1, *DEFLATE, *BY_LIBTIFF)
JPEG2000 = (33005, 34712)
PREDICTED = (5, *DEFLATE, 34925, 50000)  # compressions that a predictor may precede
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
AT_ONCE = 1 << 20  # samples that are unpacked from bits


def read_samples(file: BinaryIO, page: Page, bits: tuple[int, ...], wanted: list[int]) -> Array:
    """The wanted samples of each pixel, (H, W, len(wanted)) uint8 or, above 8 bits, uint16.

    Args:
        file: seekable.
        page: in a compression of BYTEWISE, or of JPEG2000 with 8 bits.
        bits: of each sample of a pixel, all equal and at most 16.
        wanted: indices of samples.

    Raises:
        ValueError, OSError, zlib.error: data are missing or damaged.
    """
    width, height, depth = page.get(tag.WIDTH, 0), page.get(tag.HEIGHT, 0), bits[0]
    separate = page.get(tag.PLANES, 1) == 2
    samples = np.empty((height, width, len(wanted)), np.uint8 if depth <= 8 else np.uint16)
    rows, columns = segment_shape(page)
    corners = list(product(range(0, height, rows), range(0, width, columns)))
    planes = len(bits) if separate else 1
    segments = zip(*segment_places(page, planes * len(corners)), strict=True)
    for (plane, (top, left)), (offset, size) in zip(
        product(range(planes), corners), segments, strict=True
    ):
        if separate and plane not in wanted:
            continue
        present = rows if tag.TILE_OFFSETS in page.tags else min(rows, height - top)
        shape = present, columns, 1 if separate else len(bits)
        part = _numbers(_segment(file, page, offset, size, shape, depth), shape, depth, page)
        part = part[: height - top, : width - left]
        place = samples[top : top + rows, left : left + columns]
        if separate:
            place[..., wanted.index(plane)] = part[..., 0]
        else:
            place[:] = part[..., wanted]
    return samples


def segment_shape(page: Page) -> tuple[int, int]:
    """Rows and columns of the strips or tiles."""
    width, height = page.get(tag.WIDTH, 0), page.get(tag.HEIGHT, 0)
    rows, columns = min(page.get(tag.STRIP_ROWS, height), height), width
    if tag.TILE_OFFSETS in page.tags:
        rows, columns = page.get(tag.TILE_HEIGHT, 0), page.get(tag.TILE_WIDTH, 0)
    if rows < 1 or columns < 1:
        raise ValueError(f"strips or tiles of {columns}x{rows} pixels")
    return rows, columns


def segment_places(page: Page, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The offsets and sizes in bytes of so many strips or tiles; sizes of 0 if they are not given.

    Raises:
        ValueError: there are fewer.
    """
    tiled = tag.TILE_OFFSETS in page.tags
    offsets = page.tags.get(tag.TILE_OFFSETS if tiled else tag.STRIP_OFFSETS, ())
    sizes = page.tags.get(tag.TILE_SIZES if tiled else tag.STRIP_SIZES, (0,) * count)
    if len(offsets) < count or len(sizes) < count:
        raise ValueError("strips or tiles are missing")
    return offsets[:count], sizes[:count]


def segment_bytes(file: BinaryIO, page: Page, offset: int, size: int) -> bytes:
    """A strip or tile as it is packed."""
    if offset + size > file.seek(0, 2):
        raise ValueError("image file is truncated")
    file.seek(offset)
    data = file.read(size)
    return data.translate(REVERSED) if page.get(tag.FILL_ORDER, 1) == 2 else data


def _segment(
    file: BinaryIO, page: Page, offset: int, size: int, shape: tuple[int, int, int], depth: int
) -> Array:
    """A strip or tile unpacked, (rows, bytes of a row)."""
    rows, columns, samples = shape
    width, compression = (columns * samples * depth + 7) // 8, page.get(tag.COMPRESSION, 1)
    packed = segment_bytes(file, page, offset, size if compression != 1 else rows * width)
    if compression in BY_LIBTIFF:
        tags: Tags = {tag.WIDTH: (width,), tag.HEIGHT: (rows,), tag.BITS: (8,), tag.SAMPLES: (1,)}
        tags |= {tag.COMPRESSION: (compression,), tag.PHOTOMETRIC: (1,), tag.STRIP_ROWS: (rows,)}
        return np.asarray(TiffImagePlugin.TiffImageFile(tiff_file(tags, [packed])))
    if compression in JPEG2000:
        part = np.asarray(Jpeg2000(BytesIO(packed)))
        if part.reshape(*part.shape[:2], -1).shape != shape:
            raise ValueError("strips or tiles of another size than the image says")
        return part.reshape(rows, width)
    if compression in DEFLATE:
        packed = zlib.decompressobj().decompress(packed, rows * width)
    if len(packed) < rows * width:
        raise ValueError("image file is truncated")
    return np.frombuffer(packed, np.uint8).reshape(rows, width)


def tiff_file(tags: Tags, strips: list[bytes]) -> BytesIO:
    """A little-endian TIFF of these tags and strips."""
    sizes = tuple(map(len, strips))
    *starts, place = accumulate(sizes, initial=8)
    tags = tags | {tag.STRIP_OFFSETS: tuple(starts), tag.STRIP_SIZES: sizes}
    entries, behind = b"", b""
    end = place + 2 + 12 * len(tags) + 4
    for number, values in sorted(tags.items()):
        data = struct.pack(f"<{len(values)}I", *values)
        kind, count = (5, len(values) // 2) if number in tag.RATIONAL else (4, len(values))
        if len(data) > 4:
            data, behind = struct.pack("<I", end + len(behind)), behind + data
        entries += struct.pack("<HHI", number, kind, count) + data
    head = struct.pack("<2sHI", b"II", 42, place)
    table = struct.pack("<H", len(tags)) + entries + bytes(4)
    return BytesIO(b"".join([head, *strips, table, behind]))


def _numbers(data: Array, shape: tuple[int, int, int], depth: int, page: Page) -> Array:
    """The samples of a strip or tile, (rows, columns, samples)."""
    if depth in (8, 16):
        values = data.view(f"{page.order}u{depth // 8}").reshape(shape)
        if page.get(tag.PREDICTOR, 1) == 2 and page.get(tag.COMPRESSION, 1) in PREDICTED:
            return np.cumsum(values, axis=1, dtype=values.dtype.newbyteorder("="))
        return values
    rows, columns, samples = shape
    count = columns * samples
    values = np.empty((rows, count), np.uint8 if depth < 8 else np.uint16)
    step = max(1, AT_ONCE // count)
    for row in range(0, rows, step):
        values[row : row + step] = _from_bits(data[row : row + step], count, depth)
    return values.reshape(shape)


def _from_bits(data: Array, count: int, depth: int) -> Array:
    """(rows, count) numbers of `depth` bits that follow each other from the highest bit on."""
    starts = np.arange(count) * depth
    first, shift = starts >> 3, 24 - depth - (starts & 7)
    wide = np.pad(data, ((0, 0), (0, 2))).astype(np.uint32)
    words = wide[:, first] << 16 | wide[:, first + 1] << 8 | wide[:, first + 2]
    return (words >> shift.astype(np.uint32)) & np.uint32((1 << depth) - 1)

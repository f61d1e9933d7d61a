"""Checks of the data of PNGs and TIFFs that Pillow does not make: it reads some damaged files."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from PIL import TiffImagePlugin

from stae_cli.images.jpeg import check_jpeg

try:
    from isal import isal_zlib

    inflate: Any = isal_zlib
except ImportError:  # optional: zlib does the same, a third as fast
    inflate = zlib

OFFSETS, SIZES = (273, 324), (279, 325)  # of strips, or of tiles
COMPRESSION, SAMPLES, PLANES, JPEG_TABLES = 259, 277, 284, 347
STREAM, STREAM_SIZE = 513, 514  # of an old-style JPEG
DEFLATE, JPEG, OLD_JPEG = (8, 32946), 7, 6
COLOURS = {1: "GRAY", 3: "RGB", 4: "CMYK"}  # simplejpeg does not decode two samples
PIECE = 1 << 20


def check_png(file: BinaryIO) -> None:
    """Compares the checksums of a PNG's data, which Pillow does not.

    Raises:
        ValueError: they differ, or the data end early.
    """
    file.seek(8)
    found = False
    while len(head := file.read(8)) == 8:
        size, kind = int.from_bytes(head[:4]), head[4:]
        if kind == b"IDAT":
            found, check = True, zlib.crc32(kind)
            while size and (piece := file.read(min(size, PIECE))):
                check, size = zlib.crc32(piece, check), size - len(piece)
            if len(stored := file.read(4)) < 4:
                raise ValueError("image file is truncated")
            if stored != check.to_bytes(4):
                raise ValueError("the checksum of its data is wrong")
        elif found:
            return
        else:
            file.seek(size + 4, 1)


def check_tiff(image: TiffImagePlugin.TiffImageFile, file: BinaryIO) -> None:
    """Looks for data that lack in the JPEGs and deflated strips or tiles of a TIFF's page.

    Raises:
        ValueError: there are some.
    """
    tags = image.tag_v2
    compression = tags.get(COMPRESSION)
    colours = COLOURS.get(1 if tags.get(PLANES) == 2 else tags.get(SAMPLES, 1))
    if compression == OLD_JPEG and STREAM in tags and colours is not None:
        file.seek(tags[STREAM])
        stream = file.read(tags.get(STREAM_SIZE, -1))
        if b"\xff\xda" in stream:  # else it has the tables alone
            check_jpeg(stream, colours)
    elif compression == JPEG and colours is not None:
        tables = tags.get(JPEG_TABLES, b"")[:-2]
        for piece in _pieces(tags, file):
            check_jpeg(tables + piece[2 if tables else 0 :], colours)
    elif compression in DEFLATE:
        for piece in _pieces(tags, file):
            _inflate(piece)


def _pieces(tags: TiffImagePlugin.ImageFileDirectory_v2, file: BinaryIO) -> Iterator[bytes]:
    """The data of each strip or tile."""
    offsets = next((tags[tag] for tag in OFFSETS if tag in tags), ())
    sizes = next((tags[tag] for tag in SIZES if tag in tags), ())
    for offset, size in zip(offsets, sizes, strict=False):
        if size:  # an empty one is not stored
            file.seek(offset)
            yield file.read(size)


def _inflate(data: bytes) -> None:
    inflater = inflate.decompressobj()
    try:
        while not inflater.eof:
            if not inflater.decompress(data, PIECE) and not inflater.eof:
                raise ValueError("the data of a strip end early")
            data = inflater.unconsumed_tail
    except inflate.error as error:
        raise ValueError(str(error)) from error

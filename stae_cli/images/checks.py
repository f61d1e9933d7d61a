"""What Pillow does not check: it reads some files whose data are damaged."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from PIL import Image, TiffImagePlugin
from PIL.ImageFile import ImageFile
from PIL.WebPImagePlugin import WebPImageFile

from stae_cli.images.jpeg import check_jpeg
from stae_cli.images.pillow import DAMAGED

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
SPARE = 8  # bytes at the end of a WebP's data, more than encoders append
TGA_FOOTER, TGA_FOOTER_SIZE = b"TRUEVISION-XFILE.\0", 26


def check_data(image: Image.Image, file: BinaryIO) -> None:
    """Looks for damage in the data of an opened image that is not decoded yet.

    Raises:
        ValueError: there is some.
    """
    place = file.tell()
    if image.format == "PNG":
        _check_png(file)
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiff(image.tag_v2, file)
    elif image.format == "WEBP":
        _check_webp(file)
    elif image.format in ("BMP", "TGA") and isinstance(image, ImageFile) and image.tile:
        _check_end(image, file)
    file.seek(place)


def _check_png(file: BinaryIO) -> None:
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


def _check_webp(file: BinaryIO) -> None:
    """Decodes the first picture without its last bytes, which only a damaged one does not need.

    Overwritten data decode too, to something else, but hardly to the last byte.
    """
    kind, data = _webp_data(file)
    if not _decodes(kind, data[:-SPARE]):
        return
    rest = data.rstrip(b"\0")  # what an encoder appended, or what overwrote the end
    if _decodes(kind, rest[:-SPARE]) or not _decodes(kind, rest + b"\0\0"):
        raise ValueError("its data were overwritten")


def _webp_data(file: BinaryIO) -> tuple[bytes, bytes]:
    file.seek(12)
    while len(head := file.read(8)) == 8:
        kind, size = head[:4], int.from_bytes(head[4:], "little")
        if kind in (b"VP8 ", b"VP8L"):
            return kind, file.read(size)
        file.seek(16 if kind == b"ANMF" else size + size % 2, 1)  # frames hold chunks
    return b"", b""


def _decodes(kind: bytes, data: bytes) -> bool:
    chunk = kind + len(data).to_bytes(4, "little") + data + bytes(len(data) % 2)
    file = b"RIFF" + (len(chunk) + 4).to_bytes(4, "little") + b"WEBP" + chunk
    try:
        WebPImageFile(io.BytesIO(file)).load()
    except DAMAGED:
        return False
    return True


def _check_end(image: ImageFile, file: BinaryIO) -> None:
    """Compares where the data of a BMP or TGA should end with where they do."""
    codec, _, place, _ = image.tile[0]
    end = file.seek(0, 2)
    file.seek(34)
    size = int.from_bytes(file.read(4), "little") if codec == "bmp_rle" else 0
    if image.format == "TGA" and codec == "raw":
        file.seek(16)
        size = image.width * image.height * (file.read(1)[0] // 8)
        file.seek(max(0, end - TGA_FOOTER_SIZE))
        if file.read().endswith(TGA_FOOTER):
            end -= TGA_FOOTER_SIZE
    if place + size > end:
        raise ValueError("image file is truncated")


def _check_tiff(tags: TiffImagePlugin.ImageFileDirectory_v2, file: BinaryIO) -> None:
    """Decodes the JPEGs and deflated strips or tiles of a TIFF's page."""
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

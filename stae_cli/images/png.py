"""PNG as Pillow reads it, but without texts, and with transparency and colours as the file says.

Pillow refuses files with much text, which nothing here needs; it compares a transparent colour with
pixels of another depth, and does not know cICP.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image, PngImagePlugin

from stae_cli.errors import InputError
from stae_cli.images.coded_colours import profile_of, profile_of_gamma
from stae_cli.images.spliced import Part, Spliced

TEXTS = (b"tEXt", b"zTXt", b"iTXt")
ORIENTED = (b"exif\0", b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # keywords of texts
LEADING = max(map(len, ORIENTED))
PILLOWS_TEXT = 1 << 20  # what Pillow unpacks of a text, and less than it takes of all
MOST_TEXT = 32 << 20
MOST_PROFILE = 32 << 20
SRGB_GAMMA = 45_455  # in units of gAMA
GREY, RGB, GREY_ALPHA = 0, 2, 4  # colour types
CHANNELS = {GREY: 1, RGB: 3, 3: 1, GREY_ALPHA: 2, 6: 4}
ADAM7 = (  # first column and row, and the steps, of each pass
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
PIECE = 1 << 20


@dataclass(frozen=True)
class Chunk:
    """A chunk but for IDAT: its name, and where its data begin and end."""

    name: bytes
    start: int
    end: int
    is_late: bool  # it follows pixels
    is_oriented: bool = False

    def data(self, file: BinaryIO) -> bytes:
        """Its data.

        Raises:
            ValueError: they are not whole.
        """
        if file.seek(0, 2) < self.end + 4:
            raise ValueError(f"truncated PNG file (in {self.name!r})")
        file.seek(self.start)
        data, check = file.read(self.end - self.start), file.read(4)
        if check != struct.pack(">I", zlib.crc32(self.name + data)):
            raise ValueError(f"broken PNG file (bad checksum in {self.name!r})")
        return data


class Png(PngImagePlugin.PngImageFile):
    """A PNG; `turns_late` if it may give its orientation after its pixels.

    Raises:
        InputError: its colours, texts or kind are not for 8-bit sRGB.
        Others: what Pillow raises on damaged files.
    """

    def __init__(self, file: BinaryIO, name: str = "") -> None:
        chunks = _chunks(file)
        self.turns_late = any(chunk.is_oriented and chunk.is_late for chunk in chunks)
        self._source = _without_texts(file, chunks)
        self._source.seek(0)
        super().__init__(self._source, name)
        first = {chunk.name: chunk for chunk in reversed(chunks) if not chunk.is_late}
        header = struct.unpack(">8xBBBBB", first[b"IHDR"].data(file)[:13])
        self._depth, self._kind, self._is_interlaced = header[0], header[1], bool(header[4])
        if b"iCCP" in first:
            self.info["icc_profile"] = _profile(first[b"iCCP"].data(file))
        if b"gAMA" in first and first.keys().isdisjoint((b"iCCP", b"cICP", b"sRGB")):
            self._use_gamma(first[b"gAMA"].data(file))
        if b"cICP" in first:
            self._use_code(first[b"cICP"].data(file))
        if b"tRNS" in first:
            self._mask_transparency(first[b"tRNS"].data(file))

    def _use_gamma(self, data: bytes) -> None:
        """Notes how levels become light, unless it is about as in sRGB."""
        gamma = struct.unpack(">I", data[:4])[0]
        if gamma and abs(gamma / SRGB_GAMMA - 1) > 0.05:
            is_grey = self._kind in (GREY, GREY_ALPHA)
            self.info["icc_profile"] = profile_of_gamma(100_000 / gamma, is_grey=is_grey)

    def _use_code(self, data: bytes) -> None:
        primaries, transfer, matrix, full = struct.unpack(">4B", data[:4])
        if matrix or not full:
            raise InputError("a PNG with the colours of a video (cICP): save it as sRGB")
        is_grey = self._kind in (GREY, GREY_ALPHA)
        coded = profile_of(primaries, transfer, is_grey=is_grey)
        if coded is not None:  # it comes before iCCP
            self.info["icc_profile"] = coded or None

    def _mask_transparency(self, data: bytes) -> None:
        """Makes the transparent level one of the 8 bits that Pillow stretches lower depths to."""
        peak = (1 << self._depth) - 1
        if self._kind == GREY and self._depth <= 8:
            level = struct.unpack(">H", data[:2])[0] & peak
            self.info["transparency"] = level * 255 // peak
        elif self._kind == RGB and self._depth == 8:
            levels = struct.unpack(">3H", data[:6])
            self.info["transparency"] = tuple(level & peak for level in levels)

    def load(self) -> Any:
        is_first = bool(self.tile)
        result = super().load()
        if is_first and self._ends_in_zeros():
            self._check_rows()
        if is_first and self._depth == 16:
            if self._kind == GREY_ALPHA:  # RGBA so far, which a profile of greys would not fit
                self._become(Image.merge("LA", (self.getchannel("R"), self.getchannel("A"))))
            elif "transparency" in self.info and self._kind == RGB:
                self._become(self._without_colour(self.info.pop("transparency")))
            return super().load()
        return result

    def _ends_in_zeros(self) -> bool:
        """Whether the last row, or one of the last two, may have been filled by Pillow."""
        rows = [self.crop((0, y, self.width, y + 1)) for y in range(self.height)[-2:]]
        return any(not any(row.tobytes()) for row in rows)

    def _check_rows(self) -> None:
        """Counts the bytes of all rows; Pillow fills rows that are missing with zeros.

        Raises:
            ValueError: some are missing.
        """
        bits, inflater, found = CHANNELS[self._kind] * self._depth, zlib.decompressobj(), 0
        passes = ADAM7 if self._is_interlaced else ((0, 0, 1, 1),)
        needed = 0
        for left, top, across, down in passes:
            columns = -(-(self.width - left) // across)
            rows = -(-(self.height - top) // down)
            needed += rows * (1 + -(-columns * bits // 8)) if columns > 0 and rows > 0 else 0
        for piece in _pixel_data(self._source):
            while piece:
                found += len(inflater.decompress(piece, PIECE))
                piece = inflater.unconsumed_tail
        if found < needed:
            raise ValueError("its rows end early")

    def _become(self, image: Image.Image) -> None:
        self.im, self._mode = image.im, image.mode

    def _without_colour(self, clear: tuple[int, int, int]) -> Image.Image:
        """16-bit colours, opaque but for one; Pillow compares it with upper bytes alone."""
        self._source.seek(0)
        lower = PngImagePlugin.PngImageFile(self._source)
        lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]  # bytes swapped
        upper = np.asarray(self)
        levels = np.array(clear)
        is_clear = ((upper == levels >> 8) & (np.asarray(lower) == levels & 0xFF)).all(axis=-1)
        return Image.fromarray(np.dstack([upper, np.where(is_clear, 0, 255).astype(np.uint8)]))


def _pixel_data(file: BinaryIO) -> Iterator[bytes]:
    """The data of each IDAT, in pieces."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        size, name = struct.unpack(">I4s", head)
        if name != b"IDAT":
            file.seek(size + 4, 1)
            continue
        while size and (piece := file.read(min(size, PIECE))):
            yield piece
            size -= len(piece)
        file.read(4)


def _chunks(file: BinaryIO) -> list[Chunk]:
    """All chunks but IDAT, up to the last one."""
    chunks, is_late = [], False
    file.seek(8)
    while len(head := file.read(8)) == 8:
        size, name = struct.unpack(">I4s", head)
        start = file.tell()
        if name == b"IDAT":
            is_late = True
        else:
            leading = file.read(min(size, LEADING)) if name in TEXTS else b""
            is_oriented = name == b"eXIf" or leading.startswith(ORIENTED)
            chunks.append(Chunk(name, start, start + size, is_late, is_oriented))
        if name == b"CgBI":
            raise InputError("a PNG in Apple's own form (CgBI): save it as a plain PNG")
        if name == b"IEND":
            break
        file.seek(start + size + 4)
    return chunks


def _without_texts(file: BinaryIO, chunks: list[Chunk]) -> BinaryIO:
    """The file without texts that cannot turn the picture, and without its profile.

    Raises:
        InputError: the other texts are too large.
    """
    parts: list[Part] = []
    place = total = 0
    for chunk in chunks:
        is_text = chunk.name in TEXTS
        if not is_text and chunk.name != b"iCCP":
            continue
        kept: bytes | None = b""
        if is_text and chunk.is_oriented:
            total += chunk.end - chunk.start
            kept = _unpacked(chunk.data(file), chunk.name) if total <= MOST_TEXT else b""
            total += len(kept or b"")
            if total > MOST_TEXT:
                raise InputError(f"its EXIF or XMP is larger than {MOST_TEXT >> 20} MB")
        if kept is not None:
            parts += [(place, chunk.start - 8), kept]
            place = chunk.end + 4
    if not parts:
        return file
    return cast(BinaryIO, Spliced(file, [*parts, (place, file.seek(0, 2))]))


def _unpacked(data: bytes, name: bytes) -> bytes | None:
    """A chunk with the text of a large compressed one; None for others."""
    keyword, _, rest = data.partition(b"\0")
    fields = rest.split(b"\0", 3) if name == b"iTXt" else []
    packed = rest[1:] if name == b"zTXt" else b""
    if name == b"iTXt" and rest[:2] == b"\1\0" and rest[2:].count(b"\0") >= 2:
        language, translated, packed = rest[2:].split(b"\0", 2)
        fields = [language, translated]
    if not packed:
        return None
    try:
        text = zlib.decompressobj().decompress(packed, MOST_TEXT + 1)
    except zlib.error:
        return None
    if len(text) <= PILLOWS_TEXT:
        return None
    if name == b"zTXt":
        return _chunk(b"tEXt", keyword + b"\0" + text)
    return _chunk(b"iTXt", b"\0".join([keyword, b"\0", *fields, text]))


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _profile(data: bytes) -> bytes | None:
    """The profile of an iCCP chunk; None if it is broken.

    Raises:
        InputError: it is too large.
    """
    packed = data.partition(b"\0")[2]
    try:
        profile = zlib.decompressobj().decompress(packed[1:], MOST_PROFILE + 1)
    except zlib.error:
        return None
    if len(profile) > MOST_PROFILE:
        raise InputError(f"its colour profile is larger than {MOST_PROFILE >> 20} MB")
    return profile

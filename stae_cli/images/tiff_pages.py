"""TIFF directories: the tags that say how pixels are stored, and which page is the picture.

Read here and not by Pillow, which takes the first page whatever it is, and reads tags of any size.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

from stae_cli.errors import InputError
from stae_cli.images.spliced import Spliced

NEW_SUBFILE_TYPE, SUBFILE_TYPE = 254, 255
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, ORIENTATION, SAMPLES, STRIP_ROWS, STRIP_SIZES, PLANES = 273, 274, 277, 278, 279, 284
PREDICTOR, COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_SIZES = (
    317, 320, 322, 323, 324, 325
)  # fmt: skip
SUB_DIRECTORIES, INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT, SUBSAMPLING = 330, 332, 338, 339, 530
COEFFICIENTS, REFERENCE_BLACK_WHITE, PROFILE, DNG_VERSION = 529, 532, 34675, 50706
RATIONAL = (COEFFICIENTS, REFERENCE_BLACK_WHITE)
NEEDED = frozenset(
    (NEW_SUBFILE_TYPE, SUBFILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER,
     STRIP_OFFSETS, ORIENTATION, SAMPLES, STRIP_ROWS, STRIP_SIZES, PLANES, PREDICTOR, COLOUR_MAP,
     TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_SIZES, SUB_DIRECTORIES, INK_SET, EXTRA_SAMPLES,
     SAMPLE_FORMAT, SUBSAMPLING, COEFFICIENTS, REFERENCE_BLACK_WHITE, PROFILE, DNG_VERSION)
)  # fmt: skip

KINDS = {1: "B", 3: "H", 4: "I", 5: "II", 7: "B", 13: "I", 16: "Q", 18: "Q"}  # of unsigned numbers
REDUCED, MASK = 1, 4  # bits of NewSubfileType


@dataclass(frozen=True)
class Page:
    """A page's tags, as tuples of numbers (a rational is two), in a file of this byte order.

    Args:
        tags: those of NEEDED that it has.
        order: `<` or `>`.
        is_big: the file is a BigTIFF.
        place: of its directory in the file.
        is_first: no page precedes it.
    """

    tags: dict[int, tuple[int, ...]]
    order: str
    is_big: bool
    place: int
    is_first: bool

    def get(self, tag: int, default: int) -> int:
        return self.tags.get(tag, (default,))[0]

    @property
    def is_picture(self) -> bool:
        """Neither a smaller version of another page nor its mask."""
        kind = self.get(NEW_SUBFILE_TYPE, REDUCED * (self.get(SUBFILE_TYPE, 1) == 2))
        return not kind & (REDUCED | MASK) and self.get(PHOTOMETRIC, 0) != 4

    def alone(self, file: BinaryIO) -> BinaryIO:
        """The file with this page as its first one."""
        if self.is_first:
            file.seek(0)
            return file
        link = (8, "Q") if self.is_big else (4, "I")
        file.seek(0)
        head = file.read(link[0]) + struct.pack(self.order + link[1], self.place)
        return cast(BinaryIO, Spliced(file, [head, (len(head), file.seek(0, 2))]))


def picture_page(file: BinaryIO) -> Page:
    """The first page at full size; the only one whatever it says of itself.

    Raises:
        InputError: there are only smaller versions and masks.
        ValueError, struct.error: the directories are damaged.
    """
    pages = []
    for page in _pages(file):
        if DNG_VERSION in page.tags:
            raise InputError("a DNG, raw data of a camera: develop it and save it as TIFF or PNG")
        if page.is_picture:
            return page
        pages.append(page)
    if len(pages) == 1 and SUB_DIRECTORIES not in pages[0].tags and not _is_mask(pages[0]):
        return pages[0]
    raise InputError("a TIFF whose pages are only reduced versions or masks of its picture")


def _is_mask(page: Page) -> bool:
    return bool(page.get(NEW_SUBFILE_TYPE, 0) & MASK) or page.get(PHOTOMETRIC, 0) == 4


def _pages(file: BinaryIO) -> Iterator[Page]:
    file.seek(0)
    head = file.read(8)
    order = "<" if head.startswith(b"II") else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    place = struct.unpack(order + "Q", file.read(8))[0] if big else _number(order, "I", head[4:])
    seen: set[int] = set()
    while place and place not in seen:
        seen.add(place)
        tags, following = _directory(file, place, order, big)
        yield Page(tags, order, big, place, is_first=len(seen) == 1)
        place = following
    if not seen:
        raise ValueError("a TIFF without pages")


def _number(order: str, kind: str, data: bytes) -> int:
    return int(struct.unpack(order + kind, data)[0])


def _directory(
    file: BinaryIO, place: int, order: str, big: bool
) -> tuple[dict[int, tuple[int, ...]], int]:
    """The needed tags of a directory, and where the next one is (0: nowhere)."""
    word = "Q" if big else "I"
    room, size = struct.calcsize(word), 20 if big else 12
    end_of_file = file.seek(0, 2)
    file.seek(place)
    count = _number(order, "Q" if big else "H", file.read(8 if big else 2))
    if count > 0xFFFF:
        raise ValueError("damaged TIFF directory")
    table = file.read(size * count + room)
    tags: dict[int, tuple[int, ...]] = {}
    for start in range(0, size * count, size):
        tag, kind, number = struct.unpack_from(f"{order}HH{word}", table, start)
        if tag not in NEEDED or tag in tags or kind not in KINDS:
            continue
        form = f"{order}{number * len(KINDS[kind])}{KINDS[kind][0]}"
        length = struct.calcsize(f"{order}{KINDS[kind]}") * number
        data = table[start + size - room : start + size]
        if length > room:
            if length > end_of_file:
                raise ValueError("damaged TIFF directory")
            file.seek(_number(order, word, data))
            data = file.read(length)
        tags[tag] = struct.unpack(form, data[:length])
    # Some writers leave out the last link.
    end = table[size * count :]
    return tags, _number(order, word, end) if len(end) == room else 0

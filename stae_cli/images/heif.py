"""HEIC images, by the plugin `pillow_heif`, and the damage that its decoder conceals.

The decoder paints over what it cannot make sense of, without an error. So what can be seen from
outside is checked here: the lengths of the coded pieces, and bytes that no encoder writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, cast

from PIL import Image

from stae_cli.errors import InputError
from stae_cli.images.coded_colours import profile_of

# HEVC escapes its data so that these never occur; blocks that a disk or a download lost are zeros.
IMPOSSIBLE = re.compile(rb"\x00\x00(?:[\x00-\x02]|\x03[^\x00-\x03])")
LENGTH_BYTES = 4  # before each piece of coded data, unless its configuration says otherwise


def open_heif(file: BinaryIO) -> Image.Image:
    """The primary image of a HEIC file; it decodes when loaded, and is upright then.

    Its turns (`irot`, `imir`) are applied by the plugin; orientation in EXIF means nothing in HEIC.

    Raises:
        InputError: it is damaged, or its colours cannot be converted.
        ImportError: the plugin does not work here.
    """
    from pillow_heif.as_plugin import HeifImageFile

    file.seek(0)
    _check_pieces(file.read())
    file.seek(0)
    image = cast(Image.Image, HeifImageFile(file, ""))
    coded = image.info.get("nclx_profile")
    if coded and not image.info.get("icc_profile"):
        profile = profile_of(int(coded["color_primaries"]), int(coded["transfer_characteristics"]))
        if profile:
            image.info["icc_profile"] = profile
    return image


def _check_pieces(data: bytes) -> None:
    """Checks the coded data of every picture and tile of a file.

    Raises:
        InputError: some are damaged.
    """
    meta = next((body for kind, body in _boxes(data, 0, len(data)) if kind == b"meta"), None)
    if meta is None:
        raise InputError("damaged HEIC image: it has no list of its pictures")
    parts = dict(_boxes(data, meta.start + 4, meta.stop))
    if b"iloc" not in parts or b"iinf" not in parts:
        raise InputError("damaged HEIC image: it has no list of its pictures")
    coded = _coded_items(data, parts[b"iinf"])
    sizes = _length_bytes(data[meta.start : meta.stop])
    for item, extents in _extents(data, parts[b"iloc"]):
        if item in coded:
            whole = b"".join(data[begin:end] for begin, end in extents)
            if len(whole) < sum(end - begin for begin, end in extents):
                raise InputError("truncated HEIC image")
            _check_piece(whole, sizes)


def _check_piece(data: bytes, length_bytes: int) -> None:
    at = 0
    while at < len(data):
        begin = at + length_bytes
        at = begin + int.from_bytes(data[at:begin], "big")
        if at > len(data) or at <= begin or IMPOSSIBLE.search(data, begin, at):
            raise InputError("damaged HEIC image: its coded data were overwritten")


def _boxes(data: bytes, begin: int, end: int) -> Iterator[tuple[bytes, slice]]:
    """The kind and body of each box of a file, or in a box."""
    while begin + 8 <= end:
        size, kind, head = (
            int.from_bytes(data[begin : begin + 4], "big"),
            data[begin + 4 : begin + 8],
            8,
        )
        if size == 1:
            size, head = int.from_bytes(data[begin + 8 : begin + 16], "big"), 16
        stop = end if size == 0 else begin + size
        if stop > end or stop < begin + head:
            raise InputError("damaged or truncated HEIC image")
        yield kind, slice(begin + head, stop)
        begin = stop


def _coded_items(data: bytes, body: slice) -> set[int]:
    """The numbers of the items that are HEVC pictures or tiles of them."""
    skipped = 6 if data[body.start] == 0 else 8  # version, flags, count
    found = set()
    for kind, item in _boxes(data, body.start + skipped, body.stop):
        if kind == b"infe" and (version := data[item.start]) >= 2:
            size = 2 if version == 2 else 4
            at = item.start + 4 + size
            if data[at + 2 : at + 6] == b"hvc1":
                found.add(int.from_bytes(data[item.start + 4 : at], "big"))
    return found


def _length_bytes(meta: bytes) -> int:
    at = meta.find(b"hvcC")
    return (meta[at + 4 + 21] & 3) + 1 if 0 <= at < len(meta) - 25 else LENGTH_BYTES


def _extents(data: bytes, body: slice) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """The number of each item that lies in the file itself, and where its parts begin and end."""
    at, version = body.start + 4, data[body.start]

    def number(size: int) -> int:
        nonlocal at
        at += size
        if at > body.stop:
            raise InputError("damaged HEIC image: its list of pictures is cut off")
        return int.from_bytes(data[at - size : at], "big")

    sizes = number(2)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    wide = 4 if version == 2 else 2
    for _ in range(number(wide)):
        item = number(wide)
        method = number(2) & 15 if version else 0
        number(2)  # which file
        base, extents = number(base_size), []
        for _ in range(number(2)):
            number(index_size)
            begin = base + number(offset_size)
            extents.append((begin, begin + number(length_size)))
        if method == 0:
            yield item, extents

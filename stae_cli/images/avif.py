"""AVIF as Pillow reads it, with the colours that the file gives in numbers."""

from __future__ import annotations

import struct
from typing import BinaryIO

from PIL import AvifImagePlugin

from stae_cli.errors import InputError
from stae_cli.images.boxes import Box, boxes
from stae_cli.images.coded_colours import profile_of


class Avif(AvifImagePlugin.AvifImageFile):
    """An AVIF image.

    Raises:
        InputError: its colours do not fit 8-bit sRGB, or only a part of it is to be seen.
        Others: what Pillow raises on damaged files.
    """

    def __init__(self, file: BinaryIO, name: str = "") -> None:
        properties = _properties(file)
        if b"clap" in properties:
            raise InputError("an AVIF that shows a part of its picture (clap): save it as PNG")
        file.seek(0)
        super().__init__(file, name)
        kind, primaries, transfer = struct.unpack(">4sHH", properties.get(b"colr", bytes(8))[:8])
        if kind == b"nclx" and "icc_profile" not in self.info:
            coded = profile_of(primaries, transfer)
            if coded:
                self.info["icc_profile"] = coded


def _properties(file: BinaryIO) -> dict[bytes, bytes]:
    """The properties of the primary picture, by name; of its colours those in numbers."""
    inside = {box.name: box for top in boxes(file) if top.name == b"meta"
              for box in boxes(file, top.start + 4, top.end)}  # fmt: skip
    if b"pitm" not in inside or b"iprp" not in inside:
        return {}
    primary = inside[b"pitm"].data(file)
    number = int.from_bytes(primary[4 : 8 if primary[0] else 6], "big")
    parts = list(boxes(file, inside[b"iprp"].start, inside[b"iprp"].end))
    described = [property_ for part in parts if part.name == b"ipco"
                 for property_ in boxes(file, part.start, part.end)]  # fmt: skip
    found: dict[bytes, bytes] = {}
    for part in parts:
        for index in _associated(part.data(file), number) if part.name == b"ipma" else ():
            _add(found, described[index - 1], file)
    return found


def _add(found: dict[bytes, bytes], box: Box, file: BinaryIO) -> None:
    if box.name == b"clap" or (box.name == b"colr" and box.end - box.start < 20):
        found[box.name] = box.data(file)


def _associated(table: bytes, number: int) -> list[int]:
    """The numbers, from 1 on, of the properties that an item has."""
    version, flags, count = struct.unpack(">B3sI", table[:8])
    item, wide = (">I" if version else ">H"), flags[2] & 1
    place, found = 8, []
    for _ in range(count):
        (this,) = struct.unpack_from(item, table, place)
        place += struct.calcsize(item)
        form = f">{table[place]}{'H' if wide else 'B'}"
        indices = struct.unpack_from(form, table, place + 1)
        place += 1 + struct.calcsize(form)
        if this == number:
            found += [index & (0x7FFF if wide else 0x7F) for index in indices]
    return [index for index in found if index]

"""TGA as Pillow reads it, but without transparency where the file declares none."""

from __future__ import annotations

import struct
from typing import Any, BinaryIO, cast

from PIL import Image, TgaImagePlugin

from stae_cli.errors import InputError
from stae_cli.images.alpha import straight
from stae_cli.images.spliced import Spliced

SIGNATURE = b"TRUEVISION-XFILE.\0"  # at the end of files that may have an extension area
NO_ALPHA, ALPHA, PREMULTIPLIED = (0, 1, 2), 3, 4  # its types of attributes


class Tga(TgaImagePlugin.TgaImageFile):
    """A TGA.

    Raises:
        InputError: of a kind that is not known to come out right.
        Others: what Pillow raises on damaged files.
    """

    def __init__(self, file: BinaryIO, name: str = "") -> None:
        file.seek(0)
        head = bytearray(file.read(18).ljust(18, b"\0"))
        map_depth, depth, self._alpha_bits = head[7], head[16], head[17] & 15
        if 15 in (map_depth, depth):  # stored like 16 bits
            head[7], head[16] = map_depth + (map_depth == 15), depth + (depth == 15)
            end = file.seek(0, 2)
            file = cast(BinaryIO, Spliced(file, [bytes(head), (len(head), end)]))
        file.seek(0)
        super().__init__(file, name)
        self._is_short = head[16] == 16
        kind = head[2] & 7
        is_odd_grey = self.mode == "LA" and self._alpha_bits != 8
        if not self.tile or is_odd_grey or (kind == 1 and not head[1]):
            raise InputError(f"a TGA of a kind that cannot be read (type {head[2]}, {depth} bits, "
                             f"{self._alpha_bits} of them alpha): save it as PNG")  # fmt: skip
        self._attributes = _attributes(file)
        self._has_clear_colours = head[1] == 1 and head[7] == 32

    def load(self) -> Any:
        is_first = bool(self.tile)
        result = super().load()
        if not is_first:
            return result
        if self.mode == "P" and self._has_clear_colours and self._has_alpha():
            self._become(self.convert("RGBA"))
        elif self.mode == "RGBA" and (self._is_short or not self._has_alpha()):
            if self._has_alpha() and len(set(self.getchannel("A").getextrema())) > 1:
                raise InputError("a TGA of 16 bits with transparency, about which readers differ: "
                                 "save it as PNG")  # fmt: skip
            self._become(self.convert("RGB"))
        elif self.mode in ("LA", "RGBA") and self._attributes == PREMULTIPLIED:
            self._become(straight(self))
        return super().load()

    def _has_alpha(self) -> bool:
        if self._attributes is None:
            return self._alpha_bits > 0
        return self._attributes not in NO_ALPHA

    def _become(self, image: Image.Image) -> None:
        self.im, self._mode = image.im, image.mode


def _attributes(file: BinaryIO) -> int | None:
    """What the extension area says of attribute bits; None if there is none."""
    end = file.seek(0, 2)
    file.seek(max(0, end - 26))
    footer = file.read(26)
    if not footer.endswith(SIGNATURE):
        return None
    (place,) = struct.unpack("<I", footer[:4])
    file.seek(place + 494)
    kind = file.read(1) if place else b""
    return kind[0] if kind else None

"""JPEG 2000 as Pillow reads it, but for depths other than 8 bits and for colours.

Above 8 bits Pillow rounds white up to 256, which is black; below 8 bits it leaves white at less
than 255. It ignores profiles, and takes colour spaces that it does not know for sRGB.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, Jpeg2KImagePlugin

from stae_cli.errors import InputError
from stae_cli.images.alpha import straight
from stae_cli.images.boxes import boxes
from stae_cli.images.spliced import Part, Spliced

CODESTREAM = b"\xff\x4f\xff\x51"  # its first two markers
COLOURS = {12: 4, 15: 1, 16: 3, 17: 1, 18: 3}  # components of CMYK, bilevel, sRGB, grey, sYCC
SYCC = 18
COD, COC, SOT = 0xFF52, 0xFF53, 0xFF90
OPACITY, PREMULTIPLIED = 1, 2  # kinds of channels
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Codestream:
    """What its main header says.

    Args:
        place: in the file, of the first component's depth; the others follow at steps of 3.
        depths: bits of each component.
        is_lossless: made by the integer wavelet.
        is_subsampled: some components have fewer samples; Pillow takes such for sYCC.
    """

    place: int
    depths: tuple[int, ...]
    is_lossless: bool
    is_subsampled: bool

    def with_depths(self, file: BinaryIO, depths: list[int]) -> BinaryIO:
        """The file, declared to be of other depths."""
        file.seek(self.place)
        fields = bytearray(file.read(3 * len(depths)))
        for n, depth in enumerate(depths):
            fields[3 * n] = (fields[3 * n] & 0x80) | (depth - 1)
        end = self.place + len(fields)
        parts: list[Part] = [(0, self.place), bytes(fields), (end, file.seek(0, 2))]
        return cast(BinaryIO, Spliced(file, parts))


@dataclass(frozen=True)
class Header:
    """What the boxes around a codestream say.

    Args:
        space: the number of its colour space, if it has one.
        profile: or its ICC profile.
        colours: how many its palette gives to each number; 0 without a palette.
        channels: kinds of the channels that are not colours, by number; None if nothing is said.
    """

    space: int | None = None
    profile: bytes = b""
    colours: int = 0
    channels: dict[int, int] | None = None


class Jpeg2000(Jpeg2KImagePlugin.Jpeg2KImageFile):
    """A JPEG 2000 image.

    Raises:
        InputError: its colours or depth are not known to come out right.
        Others: what Pillow raises on damaged files.
    """

    def __init__(self, file: BinaryIO, name: str = "") -> None:
        self._header, place = _header(file)
        self._stream = _codestream(file, place)
        _check(self._header, self._stream)
        self._file = file
        file.seek(0)
        super().__init__(file, name)
        depths = self._stream.depths
        self._wraps = max(depths) > 8 and self.mode != "I;16"
        if self._wraps and not self._stream.is_lossless:
            # This wavelet's numbers are relative to the depth, so that it gives 8 bits itself.
            super().__init__(self._stream.with_depths(file, [min(8, n) for n in depths]), name)
        if self._header.profile:
            self.info["icc_profile"] = self._header.profile

    def load(self) -> Any:
        is_first = bool(self.tile)
        result = super().load()
        if is_first and self.mode != "I;16":
            self._become(self._corrected())
            return super().load()
        return result

    def _become(self, image: Image.Image) -> None:
        self.im, self._mode = image.im, image.mode

    def _corrected(self) -> Image.Image:
        """The image in 8 bits, with the transparency that it declares."""
        depths = self._stream.depths
        if self._header.colours:
            return self.convert("RGBA" if self._header.colours == 4 else "RGB")
        if set(depths) != {8}:
            bands = [_stretched(np.asarray(self.getchannel(n)), depth)
                     for n, depth in enumerate(depths)]  # fmt: skip
            if self._wraps and self._stream.is_lossless:
                bands = self._unwrapped(bands)
            image = Image.merge(self.mode, [Image.fromarray(band) for band in bands])
        else:
            image = Image.merge(self.mode, self.split())
        kinds = self._header.channels
        if self.mode not in ("LA", "RGBA") or kinds is None:
            return image
        kind = kinds.get(len(depths) - 1)
        if kind == PREMULTIPLIED:
            return straight(image)
        return image if kind == OPACITY else image.convert(self.mode[:-1])

    def _unwrapped(self, bands: list[Bytes]) -> list[Bytes]:
        """Bands whose white is not black.

        The integer wavelet's numbers do not depend on the depth. Half of the range is added to
        them, so that with one bit more white and black are far from the ends of the range.
        """
        depths = self._stream.depths
        deeper = [depth + 1 if depth > 8 else depth for depth in depths]
        other = Jpeg2KImagePlugin.Jpeg2KImageFile(self._stream.with_depths(self._file, deeper))
        return [
            np.where((band == 0) & (np.asarray(other.getchannel(n)) >= 128), np.uint8(255), band)
            if depths[n] > 8
            else band
            for n, band in enumerate(bands)
        ]


def _stretched(band: Bytes, depth: int) -> Bytes:
    """A band whose values were shifted to the upper bits, so that white is 255."""
    if depth >= 8:
        return band
    peak = (1 << depth) - 1
    return (((band >> (8 - depth)).astype(np.uint16) * 255 + peak // 2) // peak).astype(np.uint8)


def _codestream(file: BinaryIO, place: int) -> Codestream:
    file.seek(place)
    if file.read(4) != CODESTREAM:
        raise ValueError("no JPEG 2000 codestream")
    size, count = struct.unpack(">H34xH", file.read(38))
    fields = file.read(3 * count)
    depths = tuple((depth & 0x7F) + 1 for depth in fields[::3])
    if not depths or len(fields) != 3 * count:
        raise ValueError("a JPEG 2000 codestream without components")
    is_subsampled = len(set(zip(fields[1::3], fields[2::3], strict=True))) > 1
    return Codestream(place + 42, depths, _wavelets(file, place + 4 + size) == {1}, is_subsampled)


def _wavelets(file: BinaryIO, place: int) -> set[int]:
    """The wavelets of the main header, 0 or (integer) 1."""
    found: set[int] = set()
    file.seek(place)
    while len(head := file.read(4)) == 4:
        marker, size = struct.unpack(">HH", head)
        if marker == SOT or size < 2:
            break
        segment = file.read(size - 2)
        if marker in (COD, COC):
            found.add(segment[9 if marker == COD else 6])
    if len(found) > 1:
        raise InputError("a JPEG 2000 image of several wavelets: save it as PNG")
    return found


def _header(file: BinaryIO) -> tuple[Header, int]:
    """What the boxes say, and where the codestream is."""
    file.seek(0)
    if file.read(4) == CODESTREAM:
        return Header(), 0
    header = Header()
    for box in boxes(file):
        if box.name == b"jp2h":
            inside = list(boxes(file, box.start, box.end))
            # Of several colour spaces the first one counts.
            header = _described({part.name: part.data(file) for part in reversed(inside)})
        elif box.name == b"jp2c":
            return header, box.start
    raise ValueError("no JPEG 2000 codestream")


def _described(parts: dict[bytes, bytes]) -> Header:
    space, profile, colours, channels = None, b"", 0, None
    if b"colr" in parts:
        method = parts[b"colr"][0]
        if method == 1:
            (space,) = struct.unpack(">I", parts[b"colr"][3:7])
        elif method in (2, 3):
            profile = parts[b"colr"][3:]
        else:
            raise InputError(f"a JPEG 2000 image of colours of method {method}: save it as PNG")
    if b"pclr" in parts:
        colours = parts[b"pclr"][2]
        plain = b"".join(struct.pack(">HBB", 0, 1, n) for n in range(colours))
        if set(parts[b"pclr"][3 : 3 + colours]) != {7} or parts.get(b"cmap") != plain:
            raise InputError("a JPEG 2000 image of an odd palette: save it as PNG")
    if b"cdef" in parts:
        entries = list(struct.iter_unpack(">HHH", parts[b"cdef"][2:]))
        channels = {number: kind for number, kind, _ in entries if kind}
        if any(number != colour - 1 for number, kind, colour in entries if not kind):
            raise InputError("a JPEG 2000 image of channels in an odd order: save it as PNG")
    return Header(space, profile, colours, channels)


def _check(header: Header, stream: Codestream) -> None:
    """Refuses what Pillow would not give rightly."""
    depths = stream.depths
    count = header.colours or len(depths)
    if max(depths) > 16:
        raise InputError(f"a {max(depths)}-bit image, whose range is unknown: save it as 16-bit")
    if count > 4 or (
        header.colours and (len(depths) > 1 or depths[0] != 8 or count < 3 or header.profile)
    ):
        raise InputError(f"a JPEG 2000 image of {len(depths)} components and "
                         f"{header.colours} colours of a palette: save it as PNG")  # fmt: skip
    space = header.space
    if space is not None and space not in COLOURS:
        raise InputError(f"a JPEG 2000 image of colour space {space}: save it as sRGB")
    is_ycc = space == SYCC or stream.is_subsampled
    fits = set(depths) == {8} or (min(depths) >= 8 and not stream.is_lossless)
    if (is_ycc and not fits) or header.profile[16:20] in (b"CMYK", b"Lab "):
        raise InputError("a JPEG 2000 image of colours that cannot be read: save it as sRGB")
    expected = COLOURS.get(space, count) if space is not None else count
    if not expected <= count <= expected + 1:
        raise InputError(f"a JPEG 2000 image of {count} channels in colour space {space}: "
                         "save it as PNG")  # fmt: skip

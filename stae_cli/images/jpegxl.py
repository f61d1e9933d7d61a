"""JPEG XL images, by the plugin `pillow_jxl`, and what its header says that the plugin ignores.

The plugin decodes a file when it is opened, gives the last frame of an animation, and leaves
colours multiplied by alpha: so the header is read here first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, Any, BinaryIO

from PIL import Image, ImageFile

from stae_cli.errors import InputError

BARE = b"\xff\x0a"
BOXED = b"\0\0\0\x0cJXL \r\n\x87\n"
STARTS = (BARE, BOXED)
HEADER = 64 << 10  # bytes, more than a header takes
ALPHA, BLACK, MOSAIC = 0, 4, 5  # kinds of channels besides colours
RATIOS = (None, (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MULTIPLIED = {"RGBA": "RGBa", "LA": "La"}


@dataclass(frozen=True)
class Header:
    """The size as stored, before it is turned, and what the plugin must be helped with."""

    width: int
    height: int
    orientation: int = 1
    animated: bool = False
    multiplied: bool = False  # colours by alpha
    odd_channels: bool = False  # black of CMYK, or the mosaic of a sensor


class JpegXL(ImageFile.ImageFile):
    """An image that is decoded when it is loaded, and is upright then."""

    format = "JXL"
    format_description = "JPEG XL"

    def _open(self) -> None:
        assert self.fp is not None
        self.header = read_header(self.fp)
        width, height = self.header.width, self.header.height
        self._size = (height, width) if self.header.orientation > 4 else (width, height)
        self._mode = "RGB"  # until it is decoded
        self.tile = []
        self._decoded = False

    def load(self) -> Any:
        if not self._decoded:
            found = self._upright()
            self.im, self._mode, self._size = found.im, found.mode, found.size
            self.info, self._decoded = dict(found.info), True
        return Image.Image.load(self)

    def _upright(self) -> Image.Image:
        from pillow_jxl.JpegXLImagePlugin import JXLImageFile

        assert self.fp is not None
        self.fp.seek(0)
        try:
            decoded = JXLImageFile(self.fp, "")
            decoded.load()
        except RuntimeError as error:
            raise InputError("damaged or truncated JPEG XL image") from error
        found: Image.Image = decoded
        if self.header.multiplied and found.mode in MULTIPLIED:
            multiplied = Image.frombytes(MULTIPLIED[found.mode], found.size, found.tobytes())
            found = multiplied.convert(found.mode)
        elif decoded.jpeg and self.header.orientation in TURNS:  # the plugin gives the JPEG in it
            found = found.transpose(TURNS[self.header.orientation])
        found.info = decoded.info
        return found


def open_jpegxl(file: BinaryIO) -> Image.Image:
    """A JPEG XL image.

    Raises:
        InputError: it is damaged, or of a kind that the plugin reads wrongly.
        ImportError: the plugin does not work here.
    """
    import pillow_jxl  # noqa: F401 (fails now, not while decoding)

    file.seek(0)
    image = JpegXL(file, "")
    if image.header.animated:
        raise InputError("an animated JPEG XL image: save its first frame as an image")
    if image.header.odd_channels:
        raise InputError("a JPEG XL image of CMYK or raw data: convert it to RGB first")
    return image


class _Bits:
    """Numbers of a codestream, the lowest bit of each byte first."""

    def __init__(self, data: bytes) -> None:
        self.value, self.left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, bits: int) -> int:
        if bits > self.left:
            raise InputError("truncated JPEG XL image")
        found = self.value & ((1 << bits) - 1)
        self.value >>= bits
        self.left -= bits
        return found

    def one_of(self, *choices: tuple[int, int]) -> int:
        """A number in one of four forms: an offset, and the bits to add to it."""
        offset, bits = choices[self.take(2)]
        return offset + self.take(bits)


def read_header(file: IO[bytes]) -> Header:
    """The header of a file at its beginning.

    Raises:
        InputError: it is damaged or truncated.
    """
    bits = _Bits(_codestream(file)[len(BARE) :])
    width, height = _size(bits)
    if bits.take(1):  # all else is as usual
        return Header(width, height)
    orientation, animated = 1, False
    if bits.take(1):
        orientation = 1 + bits.take(3)
        if bits.take(1):  # the size to show it at
            _size(bits)
        if bits.take(1):
            _skip_preview(bits)
        animated = bool(bits.take(1))
        if animated:
            _skip_timing(bits)
    _skip_depth(bits)
    bits.take(1)
    count = bits.one_of((0, 0), (1, 0), (2, 4), (1, 12))
    channels = [_channel(bits) for _ in range(count)]
    alphas = [multiplied for kind, multiplied in channels if kind == ALPHA]
    odd = any(kind in (BLACK, MOSAIC) for kind, _ in channels)
    return Header(width, height, orientation, animated, bool(alphas and alphas[0]), odd)


def _codestream(file: IO[bytes]) -> bytes:
    """The beginning of the codestream, which may be in several boxes."""
    file.seek(0)
    beginning = file.read(len(BOXED))
    if beginning.startswith(BARE):
        return beginning + file.read(HEADER)
    found = b""
    while len(found) < HEADER and len(head := file.read(8)) == 8:
        size, kind = int.from_bytes(head[:4], "big") - 8, head[4:]
        if size == -7:
            size = int.from_bytes(file.read(8), "big") - 16
        size = HEADER if size == -8 else size  # to the end of the file
        if size < 0:
            break
        if kind not in (b"jxlc", b"jxlp"):
            file.seek(size, 1)
            continue
        body = file.read(min(size, HEADER))
        found += body if kind == b"jxlc" else body[4:]
        file.seek(size - len(body), 1)
    if not found.startswith(BARE):
        raise InputError("damaged or truncated JPEG XL image")
    return found


def _size(bits: _Bits) -> tuple[int, int]:
    forms = ((1, 9), (1, 13), (1, 18), (1, 30))
    small = bits.take(1)
    height = 8 * (1 + bits.take(5)) if small else bits.one_of(*forms)
    ratio = RATIOS[bits.take(3)]
    if ratio is not None:
        return height * ratio[0] // ratio[1], height
    return 8 * (1 + bits.take(5)) if small else bits.one_of(*forms), height


def _skip_preview(bits: _Bits) -> None:
    small = bits.take(1)
    forms = (
        ((16, 0), (32, 0), (1, 5), (33, 9)) if small else ((1, 6), (65, 8), (321, 10), (1345, 12))
    )
    bits.one_of(*forms)
    if not bits.take(3):
        bits.one_of(*forms)


def _skip_timing(bits: _Bits) -> None:
    bits.one_of((100, 0), (1000, 0), (1, 10), (1, 30))
    bits.one_of((1, 0), (1001, 0), (1, 8), (1, 10))
    bits.one_of((0, 0), (0, 3), (0, 16), (0, 32))
    bits.take(1)


def _skip_depth(bits: _Bits) -> None:
    if bits.take(1):  # floating point
        bits.one_of((32, 0), (16, 0), (24, 0), (1, 6))
        bits.take(4)
    else:
        bits.one_of((8, 0), (10, 0), (12, 0), (1, 6))


def _channel(bits: _Bits) -> tuple[int, bool]:
    """The kind of a channel, and whether it is alpha that colours are multiplied by."""
    if bits.take(1):
        return ALPHA, False
    kind = bits.one_of((0, 0), (1, 0), (2, 4), (18, 6))
    _skip_depth(bits)
    bits.one_of((0, 0), (3, 0), (4, 0), (1, 3))
    bits.take(8 * bits.one_of((0, 0), (0, 4), (16, 5), (48, 10)))
    if kind == ALPHA:
        return kind, bool(bits.take(1))
    if kind == 2:  # a spot colour
        bits.take(64)
    elif kind == MOSAIC:
        bits.one_of((1, 0), (0, 2), (3, 4), (19, 8))
    return kind, False

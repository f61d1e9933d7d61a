"""Image files: upright RGB pixels of any format that Pillow reads well, or the reason why not."""

from __future__ import annotations

import os
from pathlib import PurePath
from typing import BinaryIO

import numpy as np
from PIL import (  # importing a plugin registers it
    Image,
    ImageCms,
    JpegImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
    features,
)

from stae_cli.errors import InputError
from stae_cli.images.avif import Avif
from stae_cli.images.bmp import open_bmp
from stae_cli.images.buffers import Buffers, Pixels
from stae_cli.images.checks import check_data
from stae_cli.images.gif import Gif
from stae_cli.images.jpeg import load_jpeg
from stae_cli.images.jpeg2000 import Jpeg2000
from stae_cli.images.lazy import Lazy
from stae_cli.images.pillow import DAMAGED, damaged, to_srgb, whole_files
from stae_cli.images.plugins import PLUGIN_SUFFIXES, opened_by_plugin
from stae_cli.images.png import Png
from stae_cli.images.tga import Tga
from stae_cli.images.tiff import open_tiff
from stae_cli.signatures import LONGEST, kind_of

Colour = tuple[int, int, int]

SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k"),
    "AVIF": (".avif",) if features.check("avif") else (),
    "TGA": (".tga",),
}
IMAGE_SUFFIXES = frozenset(
    suffix for suffixes in (*SUFFIXES_OF.values(), PLUGIN_SUFFIXES) for suffix in suffixes
)
UPRIGHT = ("TIFF", "HEIF", "JXL")  # turned while they are loaded

MAX_PIXELS = 512_000_000
ORIENTATION_TAG = 0x0112
TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap the sides
DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I")
OPENED_HERE = {
    "AVIF": Avif,
    "BMP": open_bmp,
    "GIF": Gif,
    "JPEG2000": Jpeg2000,
    "PNG": Png,
    "TGA": Tga,
    "TIFF": open_tiff,
}  # formats of which Pillow reads some kinds wrongly
WEAKLY_MARKED = ("PPM", "TGA")  # that other files may seem to be of
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


class ImageFile:
    """An image whose header was read and is valid; its pixels are read on request.

    `width` and `height` are those of the upright image.
    """

    def __init__(self, image: Image.Image, file: BinaryIO, buffers: Buffers) -> None:
        self._image, self._file = image, file
        self.buffers = buffers
        self._orientation = _orientation(image)
        self.width, self.height = image.size
        if self._orientation in TRANSPOSED:
            self.width, self.height = self.height, self.width

    def pixels(self, background: Colour = (255, 255, 255)) -> Pixels:
        """The upright sRGB pixels, (H, W, 3) uint8 and contiguous.

        Args:
            background: the colour behind transparency.

        Raises:
            InputError: the file is truncated, damaged, or of a kind without such pixels.
            OSError: the disk fails.
        """
        try:
            with whole_files:
                raw = self._loaded()
                if isinstance(raw, Image.Image):
                    raw = np.asarray(_to_rgb(raw, background))
        except DAMAGED as error:
            raise damaged(error) from error
        turned = _turned(raw, self._orientation)
        if turned.shape != (self.height, self.width, 3):
            raise InputError("damaged image: its size is not what its header says")
        if turned.flags.c_contiguous:
            return turned
        upright = self.buffers.take(self.height, self.width)
        upright[:] = turned
        return upright

    def _loaded(self) -> Pixels | Image.Image:
        """The pixels, or an image that still is to be converted."""
        if self._image.format in ("JPEG", "MPO"):
            return load_jpeg(self._image, self._file, self.buffers)
        check_data(self._image, self._file)
        return self._image


def open_image(file: BinaryIO, *, name: str = "", buffers: Buffers | None = None) -> ImageFile:
    """Reads an image's header.

    Args:
        file: seekable; kept open by the caller until the pixels are read.
        name: the file's name; only its suffix counts, and only for TGA, which has no signature.
        buffers: allocate memory for pixels.

    Raises:
        InputError: not an image, damaged, or larger than 512 megapixels.
        OSError: the disk fails.
    """
    try:
        with whole_files:
            image = _identified(file, PurePath(name).suffix.lower())
        if image is None:
            file.seek(0)
            kind = kind_of(file.read(LONGEST))
            other = f"not an image; it begins like {kind}" if kind else "not an image"
            raise InputError(other if file.seek(0, 2) else "empty file")
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise InputError(f"{width}x{height} pixels are more than {MAX_PIXELS // 10**6} million")
        with whole_files:
            return ImageFile(image, file, buffers or Buffers())
    except DAMAGED as error:
        raise damaged(error) from error


def read_image(path: os.PathLike[str] | str) -> Pixels:
    """Reads an image file as `stae encode` does.

        pixels = read_image("photos/cat.jpg")  # (H, W, 3) uint8

    Args:
        path: a JPEG, PNG, WebP, GIF, TIFF, BMP, PPM, JPEG 2000, AVIF or TGA file; HEIC and
            JPEG XL with `stae[heif]`.

    Returns:
        (H, W, 3) uint8: upright, as sRGB, transparency on white; of an animation the first frame.

    Raises:
        InputError: the file is absent, not an image, damaged, or above 512 megapixels.
    """
    place = os.fspath(path)
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (takes both kinds of path)
            return open_image(file, name=place).pixels()
    except InputError as error:
        raise InputError(f"`{place}`: {error.message}", error.hint) from error
    except OSError as error:
        raise InputError(f"`{place}`: cannot read it: {error.strerror or error}") from error


def _identified(file: BinaryIO, suffix: str) -> Image.Image | None:
    """Like `Image.open`, without its limit of 179 megapixels (ours is checked above).

    That limit can only be changed for the whole process.

    Raises:
        InputError: of a format that is known, but not of a kind that can be read.
    """
    if (image := opened_by_plugin(file)) is not None:
        return image
    refusal = None
    file.seek(0)
    prefix = file.read(16)
    for name, suffixes in SUFFIXES_OF.items():
        factory, accept = Image.OPEN[name]
        if name == "TGA" and suffix not in suffixes:
            continue
        if accept is not None and accept(prefix) is not True:
            continue
        file.seek(0)
        try:
            return OPENED_HERE.get(name, factory)(file, "")
        except SyntaxError as error:  # of another format, or of a kind that Pillow does not know
            if name not in WEAKLY_MARKED:
                refusal = InputError(f"a {name} that cannot be read: {error}")
    if refusal:
        raise refusal
    if suffix in SUFFIXES_OF["PPM"] and prefix[:2] in (b"P7", b"PF"):
        kind = "a PAM" if prefix[1] == ord("7") else "a PFM, of floating-point numbers"
        raise InputError(f"{kind}, which cannot be read: save it as PNG")
    return None


def _orientation(image: Image.Image) -> int:
    if isinstance(image, Lazy):
        return image.orientation if image.orientation in range(1, 9) else 1
    if image.format in UPRIGHT:
        return 1
    if isinstance(image, Png) and image.turns_late:
        # Not left to `getexif`: it would hide the error of a damaged file, and loading the file a
        # second time gives what could be read, without an error.
        image.load()
    try:
        value = Image.Image.getexif(image).get(ORIENTATION_TAG, 1)
    except DAMAGED:  # broken EXIF does not make the pixels wrong
        return 1
    return value if value in range(1, 9) else 1


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    if orientation in TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _to_rgb(image: Image.Image, background: Colour) -> Image.Image:
    image.load()
    if image.mode == "F":
        raise InputError("a floating-point image, whose range is unknown: save it as 16-bit")
    if image.mode in DEEP_GREY:
        image = _shallow(image)
    transform = to_srgb(image)
    if image.mode in WITH_ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, background)
        canvas.paste(_in_srgb(image, transform), mask=image.getchannel("A"))
        return canvas
    return _in_srgb(image, transform)


def _in_srgb(image: Image.Image, transform: ImageCms.ImageCmsTransform | None) -> Image.Image:
    mode = "RGB" if transform is None else transform.input_mode
    if image.mode != mode:
        image = image.convert(mode)
    return image if transform is None else transform.apply(image)


def _shallow(image: Image.Image) -> Image.Image:
    """16-bit grey to its upper 8 bits, as Pillow does for 16-bit colours."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise InputError("a 32-bit image, whose range is unknown: save it as 16-bit")
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    grey.info = {key: value for key, value in image.info.items() if key == "icc_profile"}
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return grey
    alpha = Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
    both = Image.merge("LA", (grey, alpha))
    both.info = grey.info
    return both

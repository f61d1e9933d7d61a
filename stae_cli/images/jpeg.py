"""JPEG: the pixels that libjpeg reads, or the reason why some of their data are missing.

libjpeg fills what is missing with grey, and reports only the first oddity that it meets, which may
be a harmless one. So a file with oddities is decoded again without those that do no harm: whatever
libjpeg still complains about is a loss.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import partial
from typing import BinaryIO, cast

import numpy as np
import simplejpeg
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from stae_cli.images.buffers import Buffers, Pixels
from stae_cli.images.jpeg_layout import Layout
from stae_cli.images.pillow import DAMAGED, to_srgb

COLOURS = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
SURPLUS = re.compile("extraneous bytes before marker", re.I)
# Kinds that libjpeg reads, but not through the interface that simplejpeg uses.
UNSUPPORTED = re.compile("could not determine subsampling|color conversion|data precision", re.I)
FILLER = b"\x5a" * 32


def load_jpeg(image: Image.Image, file: BinaryIO, buffers: Buffers) -> Pixels | Image.Image:
    """The pixels of a JPEG whose data are all there, bit for bit as Pillow reads them.

    Args:
        image: the opened JPEG; of several pictures in it the first is read.
        file: its file.
        buffers: allocate memory for pixels.

    Returns:
        (H, W, 3) RGB, or, if they are still to be converted, an image in the file's own colours.

    Raises:
        ValueError: data are missing or damaged.
    """
    file.seek(0)
    data = file.read()
    convert = image.mode == "CMYK" or to_srgb(image) is not None
    colours = COLOURS[image.mode] if convert else "RGB"
    buffer = buffers.take(image.height, image.width) if colours == "RGB" else None
    samples = decode_jpeg(data, colours, buffer)
    if samples is not None and not convert:
        return samples
    if samples is None:
        own: Image.Image = JpegImageFile(io.BytesIO(Layout(data).rewritten()))
    elif image.mode == "CMYK":  # Pillow takes the levels of all such files as inverted
        own = Image.fromarray(255 - samples, "CMYK")
    else:
        own = Image.fromarray(samples[..., 0] if image.mode == "L" else samples)
    own.info = image.info
    return own


def decode_jpeg(data: bytes, colours: str, buffer: Pixels | None = None) -> Pixels | None:
    """The samples of a JPEG whose data are all there; None for kinds that only Pillow reads.

    Args:
        data: the file; what follows the end of its first picture is ignored.
        colours: `RGB`, `GRAY` or `CMYK`.
        buffer: for the samples, (H, W, channels).

    Raises:
        ValueError: data are missing or damaged.
    """
    decode = partial(simplejpeg.decode_jpeg, colorspace=colours, buffer=buffer)
    try:
        samples = cast(Pixels, decode(data))
    except ValueError:
        return _decoded_without_oddities(Layout(data), decode)
    if (fault := Layout(data, briefly=True).fault()) is not None:
        raise ValueError(fault)
    return samples


def check_jpeg(data: bytes, colours: str) -> None:
    """Decodes a JPEG at an eighth of its size, since what is missing shows there too.

    Raises:
        ValueError: data are missing or damaged.
    """
    layout = Layout(data)
    # libjpeg-turbo 3.1 writes past the end of a buffer for lossless ones at another size.
    size = {} if layout.is_lossless else {"min_height": 1, "min_width": 1, "min_factor": 8}
    _decoded_without_oddities(layout, partial(simplejpeg.decode_jpeg, colorspace=colours, **size))


def _decoded_without_oddities(layout: Layout, decode: Callable[[bytes], Pixels]) -> Pixels | None:
    samples = None
    try:
        samples = decode(layout.rewritten())
    except ValueError as error:
        if UNSUPPORTED.search(str(error)):
            _check_by_pillow(layout)
        elif SURPLUS.search(str(error)):
            samples = _decoded_without_padding(layout, decode, error)
        else:
            raise
    # A file need not hold all bits of its coefficients, but with oddities they were rather lost.
    if (fault := layout.fault(to_the_last_bit=True)) is not None:
        raise ValueError(fault)
    return samples


def _decoded_without_padding(
    layout: Layout, decode: Callable[[bytes], Pixels], surplus: ValueError
) -> Pixels:
    """Zeros that an encoder appended are not needed; those of an overwritten block are."""
    try:
        return decode(layout.rewritten(strip_zeros=True))
    except ValueError:
        raise surplus from None


def _check_by_pillow(layout: Layout) -> None:
    """Whether Pillow reads the same with more data: then it had enough without them."""
    try:
        plain = _by_pillow(layout.rewritten())
    except DAMAGED:  # lossless ones in TIFFs, which cannot be checked
        return
    if not np.array_equal(plain, _by_pillow(layout.rewritten(filler=FILLER))):
        raise ValueError("premature end of data")


def _by_pillow(data: bytes) -> Pixels:
    return np.asarray(JpegImageFile(io.BytesIO(data)))

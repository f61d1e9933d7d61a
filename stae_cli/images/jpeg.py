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
from typing import BinaryIO

import numpy as np
import simplejpeg
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from stae_cli.images.buffers import Buffers, Pixels
from stae_cli.images.jpeg_layout import Layout
from stae_cli.images.pillow import to_srgb

COLOURS = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
SURPLUS = re.compile("extraneous bytes before marker", re.I)
# Kinds that libjpeg reads, but not through the interface that simplejpeg uses.
UNSUPPORTED = re.compile("could not determine subsampling|color conversion", re.I)
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
    samples = decode_jpeg(data, partial(simplejpeg.decode_jpeg, colorspace=colours, buffer=buffer))
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


def check_jpeg(data: bytes, colours: str) -> None:
    """Decodes a JPEG at an eighth of its size, since what is missing shows there too.

    Raises:
        ValueError: data are missing or damaged.
    """
    decode_jpeg(
        data,
        partial(
            simplejpeg.decode_jpeg, colorspace=colours, min_height=1, min_width=1, min_factor=8
        ),
    )


def decode_jpeg(data: bytes, decode: Callable[[bytes], Pixels]) -> Pixels | None:
    """The samples of a JPEG whose data are all there; None for kinds that only Pillow reads.

    Args:
        data: the file; what follows the end of its first picture is ignored.
        decode: decodes it with simplejpeg.

    Raises:
        ValueError: data are missing or damaged.
    """
    samples = None
    try:
        samples = decode(data)
        fault = Layout(data, briefly=True).fault()
    except ValueError as error:
        layout = Layout(data)
        if UNSUPPORTED.search(str(error)):
            _check_by_pillow(layout)
        else:
            samples = _decoded_without_oddities(layout, decode)
        # A file may keep the last bits of its coefficients to itself, but hardly by intention then.
        fault = layout.fault(to_the_last_bit=True)
    if fault is not None:
        raise ValueError(fault)
    return samples


def _decoded_without_oddities(layout: Layout, decode: Callable[[bytes], Pixels]) -> Pixels:
    try:
        return decode(layout.rewritten())
    except ValueError as error:
        if not SURPLUS.search(str(error)):
            raise
        surplus = error
    try:  # zeros that an encoder appended are not needed; those of an overwritten block are
        return decode(layout.rewritten(strip_zeros=True))
    except ValueError:
        raise surplus from None


def _check_by_pillow(layout: Layout) -> None:
    """Whether Pillow reads the same with more data: then it had enough without them."""
    plain, filled = (
        np.asarray(JpegImageFile(io.BytesIO(layout.rewritten(filler=filler))))
        for filler in (b"", FILLER)
    )
    if not np.array_equal(plain, filled):
        raise ValueError("premature end of data")

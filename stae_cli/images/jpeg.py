"""JPEG: the pixels that libjpeg reads, or the reason why some of their data are missing.

libjpeg fills what is missing with grey, and reports only the first oddity that it meets, which may
be a harmless one. So a file with oddities is decoded again without those that do no harm: whatever
libjpeg still complains about is a loss.
"""

from __future__ import annotations

import io
import re
from typing import BinaryIO, cast

import numpy as np
import simplejpeg
from PIL import Image

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
    samples = decode_jpeg(data, colours, buffer)
    if samples is None:
        file.seek(0)
        return image
    if not convert:
        return samples
    if image.mode == "CMYK":  # all such files have their levels inverted, and Pillow takes it so
        samples = 255 - samples
    own = Image.fromarray(samples[..., 0] if image.mode == "L" else samples, image.mode)
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
    try:
        samples = _decoded(data, colours, buffer)
        layout = Layout(data, briefly=True)
    except ValueError as error:
        layout = Layout(data)
        if UNSUPPORTED.search(str(error)):
            _check_by_pillow(layout)
            samples = None
        else:
            samples = _decoded_without_oddities(layout, colours, buffer)
    if (fault := layout.fault()) is not None:
        raise ValueError(fault)
    return samples


def _decoded(data: bytes, colours: str, buffer: Pixels | None) -> Pixels:
    return cast(Pixels, simplejpeg.decode_jpeg(data, colorspace=colours, buffer=buffer))


def _decoded_without_oddities(layout: Layout, colours: str, buffer: Pixels | None) -> Pixels:
    try:
        return _decoded(layout.rewritten(), colours, buffer)
    except ValueError as error:
        if not SURPLUS.search(str(error)):
            raise
        surplus = error
    try:  # zeros that an encoder appended are not needed; those of an overwritten block are
        return _decoded(layout.rewritten(strip_zeros=True), colours, buffer)
    except ValueError:
        raise surplus from None


def _check_by_pillow(layout: Layout) -> None:
    """Whether Pillow reads the same with more data: then it had enough without them."""
    plain, filled = (
        np.asarray(Image.open(io.BytesIO(layout.rewritten(filler=filler))))
        for filler in (b"", FILLER)
    )
    if not np.array_equal(plain, filled):
        raise ValueError("premature end of data")

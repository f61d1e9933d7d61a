"""TIFF: the kinds that Pillow reads rightly, by Pillow; others sample by sample, or the reason.

Of the rest Pillow reads some wrongly without an error (white as zero in 16 bits, 12 bits, separate
planes of 16 bits), so that only those known to come out right are left to it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin

from stae_cli.errors import InputError
from stae_cli.images import tiff_pages as tag
from stae_cli.images.lazy import Lazy
from stae_cli.images.tiff_pages import Page, picture_page
from stae_cli.images.tiff_samples import (
    BYTEWISE,
    JPEG2000,
    PREDICTED,
    Array,
    read_samples,
    segment_bytes,
    segment_places,
    tiff_file,
)  # fmt: skip

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4}  # samples of a colour
UNSPECIFIED, ASSOCIATED, STRAIGHT = 0, 1, 2  # kinds of extra samples; the last two are alpha
ITS_OWN = (2, 3, 4, 6, 7, 32771, 32809)  # CCITT, JPEG and ThunderScan, which Pillow alone reads
PILLOWS_EXTRA: dict[int, dict[int, list[tuple[int, ...]]]] = {  # by the bits of samples
    RGB: {
        8: [(), *(first + (0,) * n for first in [(0,), (1,), (2,)] for n in range(3))],
        16: [(), (0,), (1,), (2,)],
    },
    CMYK: {8: [(), (0,), (0, 0)], 16: [()]},
}
FULL_RANGE = (0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1)  # rationals
NAMES = {
    0: "grey", 1: "grey", RGB: "RGB", PALETTE: "palette", CMYK: "CMYK", YCBCR: "YCbCr",
    LAB: "CIELab", 9: "ICCLab", 10: "ITULab", 32803: "raw", 32844: "LogL", 32845: "LogLuv",
    34892: "raw",
}  # fmt: skip
COMPRESSIONS = {
    1: "uncompressed", 2: "CCITT", 3: "CCITT", 4: "CCITT", 5: "LZW", 6: "old JPEG", 7: "JPEG",
    8: "deflate", 32946: "deflate", 32773: "PackBits", 33003: "JPEG 2000", 33005: "JPEG 2000",
    34661: "JBIG", 34676: "LogLuv", 34677: "LogLuv", 34712: "JPEG 2000", 34887: "LERC",
    34892: "lossy JPEG", 34925: "LZMA", 50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL",
    52546: "JPEG XL",
}  # fmt: skip


def open_tiff(file: BinaryIO, name: str = "") -> Image.Image:
    """The picture's page, not decoded yet.

    Raises:
        InputError: of a kind whose right pixels are unknown, or that cannot be read.
        Others: what Pillow raises on damaged files.
    """
    page = picture_page(file)
    bits, extra = _bits(page), _extra(page)
    _check_range(page, bits)
    if _pillow_reads(page, bits, extra):
        try:
            return TiffImagePlugin.TiffImageFile(page.alone(file), name)
        except (SyntaxError, KeyError) as error:
            raise _unreadable(page, bits) from error
    if (decode := _own_reader(file, page, bits, extra)) is None:
        raise _unreadable(page, bits)
    return Lazy(
        (page.get(tag.WIDTH, 0), page.get(tag.HEIGHT, 0)),
        decode,
        profile=bytes(page.tags.get(tag.PROFILE, ())),
        orientation=page.get(tag.ORIENTATION, 1),
    )


def _bits(page: Page) -> tuple[int, ...]:
    """The bits of each sample of a pixel."""
    bits, samples = page.tags.get(tag.BITS, (1,)), page.get(tag.SAMPLES, 1)
    if not 0 < samples <= 64:
        raise ValueError(f"{samples} samples per pixel")
    return bits * samples if len(bits) == 1 else bits[:samples]


def _extra(page: Page) -> tuple[int, ...]:
    """What the samples behind the colour are; a fourth one of RGB is alpha unless it is said."""
    extra = page.tags.get(tag.EXTRA_SAMPLES, ())
    if page.get(tag.PHOTOMETRIC, 0) == RGB and page.get(tag.SAMPLES, 1) == 4:
        return (STRAIGHT,) if extra in ((), (999,)) else extra  # 999: Corel Draw
    return extra


def _check_range(page: Page, bits: tuple[int, ...]) -> None:
    formats = set(page.tags.get(tag.SAMPLE_FORMAT, (1,)))
    if formats == {3}:
        raise InputError("a floating-point image, whose range is unknown: save it as 16-bit")
    if formats != {1}:
        raise InputError(
            "an image of signed or complex numbers, whose range is unknown: save it as 16-bit"
        )
    if max(bits) > 16:
        raise InputError(f"a {max(bits)}-bit image, whose range is unknown: save it as 16-bit")


def _unreadable(page: Page, bits: tuple[int, ...]) -> InputError:
    photometric, compression = page.get(tag.PHOTOMETRIC, 0), page.get(tag.COMPRESSION, 1)
    depths = "/".join(map(str, sorted(set(bits))))
    kind = NAMES.get(photometric, f"photometric interpretation {photometric}")
    packing = COMPRESSIONS.get(compression, f"compression {compression}")
    count = f"{len(bits)} samples" if len(bits) > 1 else "one sample"
    return InputError(
        f"a TIFF of a kind that cannot be read ({kind}, {count} of {depths} bits, {packing}): "
        "save it as PNG"
    )


def _pillow_reads(page: Page, bits: tuple[int, ...], extra: tuple[int, ...]) -> bool:
    """Whether Pillow reads this kind rightly, or refuses it."""
    kind, compression = page.get(tag.PHOTOMETRIC, 0), page.get(tag.COMPRESSION, 1)
    depth, count = bits[0], len(bits)
    if (kind == CMYK and page.get(tag.INK_SET, 1) != 1) or (page.is_big and page.order == ">"):
        return False
    if compression not in BYTEWISE:
        return compression in ITS_OWN and set(bits) <= {1, 4, 8} and kind in (*COLOURS, YCBCR)
    if page.get(tag.PLANES, 1) != 1 or page.get(tag.FILL_ORDER, 1) != 1 or len(set(bits)) != 1:
        return False
    if kind in (WHITE_IS_ZERO, BLACK_IS_ZERO) and count == 1:
        return depth in (1, 2, 4, 8) or (depth == 16 and kind == BLACK_IS_ZERO)
    if kind == BLACK_IS_ZERO:
        return bits == (8, 8) and extra in ((UNSPECIFIED,), (STRAIGHT,))
    if kind == PALETTE:
        return count == 1 and depth in (1, 2, 4, 8) and max(page.tags[tag.COLOUR_MAP]) > 255
    if kind in (RGB, CMYK):
        return count == COLOURS[kind] + len(extra) and extra in PILLOWS_EXTRA[kind].get(depth, ())
    if kind == YCBCR:
        return bits == (8, 8, 8) and (compression != 1 or _is_simple_ycbcr(page))
    return kind == LAB and bits == (8, 8, 8)


def _is_simple_ycbcr(page: Page) -> bool:
    """Whether it is YCbCr as in JPEGs, without subsampling."""
    levels = page.tags.get(tag.REFERENCE_BLACK_WHITE, FULL_RANGE)
    ratios = [levels[n] / (levels[n + 1] or 1) for n in range(0, len(levels), 2)]
    return (
        page.tags.get(tag.SUBSAMPLING) == (1, 1)
        and tag.COEFFICIENTS not in page.tags
        and ratios == [*FULL_RANGE[::2]]
    )


def _own_reader(
    file: BinaryIO, page: Page, bits: tuple[int, ...], extra: tuple[int, ...]
) -> Callable[[], Image.Image] | None:
    """What decodes the page, if samples of this kind can be read and interpreted here."""
    kind, compression = page.get(tag.PHOTOMETRIC, 0), page.get(tag.COMPRESSION, 1)
    if kind == YCBCR and compression == 1 and tag.STRIP_OFFSETS in page.tags:
        return lambda: TiffImagePlugin.TiffImageFile(_deflated(file, page))
    colours = COLOURS.get(kind, 0)
    if compression not in BYTEWISE and not (compression in JPEG2000 and set(bits) == {8}):
        return None
    if len(set(bits)) != 1 or not 0 < colours <= len(bits):
        return None
    if len(bits) != colours + len(extra) or (kind == CMYK and page.get(tag.INK_SET, 1) != 1):
        return None
    predictor = page.get(tag.PREDICTOR, 1) if compression in PREDICTED else 1
    if predictor != 1 and (predictor != 2 or bits[0] not in (8, 16)):
        return None
    alphas = [n for n, meaning in enumerate(extra) if meaning in (ASSOCIATED, STRAIGHT)][:1]
    associated = bool(alphas) and extra[alphas[0]] == ASSOCIATED
    if alphas and (kind == CMYK or (associated and kind not in (BLACK_IS_ZERO, RGB))):
        return None
    wanted = [*range(colours), *(colours + n for n in alphas)]
    return lambda: _image(page, read_samples(file, page, bits, wanted), bits[0], associated)


def _image(page: Page, samples: Array, depth: int, associated: bool) -> Image.Image:
    """The image of (H, W, colours and alpha) samples."""
    kind, peak = page.get(tag.PHOTOMETRIC, 0), (1 << depth) - 1
    colours, alpha = samples[..., : COLOURS[kind]], samples[..., COLOURS[kind] :]
    if kind == WHITE_IS_ZERO:
        colours = peak - colours
    if kind == PALETTE:
        colours = _coloured(page, colours, depth)
    else:
        colours = _straight(colours, alpha) if associated else _in_8_bits(colours, depth)
    pixels = np.concatenate([colours, _in_8_bits(alpha, depth)], axis=-1)
    if kind == CMYK:
        return Image.frombytes("CMYK", pixels.shape[1::-1], pixels.tobytes())
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _straight(colours: Array, alpha: Array) -> Array:
    """Colours that were multiplied by alpha, in 8 bits."""
    whole = (colours.astype(np.uint32) * 255 + alpha // 2) // np.maximum(alpha, 1)
    return np.minimum(whole, 255).astype(np.uint8)


def _coloured(page: Page, samples: Array, depth: int) -> Array:
    table = np.array(page.tags[tag.COLOUR_MAP]).reshape(3, 1 << depth)
    # Some writers give 8 bits, as libtiff knows too.
    table = table >> 8 if table.max() > 255 else table
    return table.T.astype(np.uint8)[samples[..., 0]]


def _in_8_bits(samples: Array, depth: int) -> Array:
    """The upper 8 bits; fewer are stretched, so that white is 255."""
    if depth >= 8:
        return (samples >> (depth - 8)).astype(np.uint8)
    peak = (1 << depth) - 1
    return ((samples.astype(np.uint16) * 510 + peak) // (2 * peak)).astype(np.uint8)


def _deflated(file: BinaryIO, page: Page) -> BytesIO:
    """An uncompressed page as one that Pillow leaves to libtiff, which knows every YCbCr."""
    offsets, sizes = segment_places(page, len(page.tags[tag.STRIP_OFFSETS]))
    segments = [
        zlib.compress(segment_bytes(file, page, *place), 0)
        for place in zip(offsets, sizes, strict=True)
    ]
    kept = (tag.WIDTH, tag.HEIGHT, tag.BITS, tag.PHOTOMETRIC, tag.SAMPLES, tag.STRIP_ROWS,
            tag.PLANES, tag.SUBSAMPLING, *tag.RATIONAL)  # fmt: skip
    tags = {number: page.tags[number] for number in kept if number in page.tags}
    return tiff_file(tags | {tag.COMPRESSION: (8,)}, segments)

"""TIFFs of every depth, layout and kind: the right pixels, or the reason."""

import io

import numpy as np
import pytest

from stae_cli.errors import InputError
from stae_cli.images.read import open_image
from tests.difficult import ADOBE_LIKE
from tests.tiffs import file_of, tiff_of

ROW, COLUMN = np.mgrid[:20, :24]
LEVELS = (ROW * 24 + COLUMN) / 479  # (20, 24) from 0 to 1
RGB = np.dstack([LEVELS, 1 - LEVELS, COLUMN / 23])


def read(data):
    return open_image(io.BytesIO(data)).pixels()


def stored(values, bits):
    return np.round(values * (2**bits - 1)).astype(np.uint64)


def in_8_bits(samples, bits):
    """The upper 8 bits, or the nearest level of 8 bits."""
    samples = samples.astype(int)
    return samples >> (bits - 8) if bits >= 8 else np.round(samples * 255 / (2**bits - 1))


@pytest.mark.parametrize("layout", [
    {}, {"order": ">"}, {"compression": 5}, {"compression": 5, "order": ">"}, {"compression": 8},
    {"compression": 32773}, {"tile": 16}, {"tile": 16, "compression": 8}, {"rows": 7}, {"fill": 2},
    {"big": True}, {"big": True, "order": ">"}, {"compression": 5, "fill": 2},
], ids=lambda layout: "-".join(f"{name}{value}" for name, value in layout.items()))  # fmt: skip
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 10, 12, 14, 16])
def test_greys(bits, layout):
    samples = stored(LEVELS, bits)
    expected = in_8_bits(samples, bits)
    for photometric, values in ((1, samples), (0, 2**bits - 1 - samples)):
        pixels = read(tiff_of(values, bits, photometric, **layout))
        assert (pixels == expected[..., None]).all()


@pytest.mark.parametrize("layout", [
    {"planar": 2}, {"planar": 2, "order": ">"}, {"planar": 2, "tile": 16, "compression": 8},
    {"planar": 2, "rows": 7, "compression": 5}, {"compression": 8, "tile": 16}, {"fill": 2},
], ids=lambda layout: "-".join(f"{name}{value}" for name, value in layout.items()))  # fmt: skip
@pytest.mark.parametrize("bits", [2, 8, 12, 16])
def test_colours(bits, layout):
    samples = stored(RGB, bits)
    assert (read(tiff_of(samples, bits, **layout)) == in_8_bits(samples, bits)).all()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
def test_differences(bits, planar, order):
    samples = stored(np.dstack([RGB, LEVELS]), bits)
    data = tiff_of(samples, bits, 2, extra=[0], planar=planar, order=order, tile=16,
                   compression=8, predictor=2)  # fmt: skip
    assert (read(data) == in_8_bits(samples[..., :3], bits)).all()


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("extra", [(1,), (2,), (0, 2), (0,)])
def test_transparency(bits, colours, planar, extra):
    light = RGB[..., :colours]
    alpha = np.where(COLUMN < 12, 1.0, 0.4)[..., None]
    others = [np.full_like(alpha, 0.3)] * (len(extra) - 1)
    stored_light = light * alpha if extra == (1,) else light
    samples = stored(np.dstack([stored_light, *others, alpha]), bits)
    pixels = read(tiff_of(samples, bits, 1 if colours == 1 else 2, extra=extra, planar=planar))
    expected = light if extra == (0,) else light * alpha + 1 - alpha
    assert np.abs(pixels - expected * 255).max() <= (1.5 if bits > 4 else 10)


@pytest.mark.parametrize("bits", [1, 4, 8, 16])
@pytest.mark.parametrize("small", [False, True])
def test_palettes(bits, small):
    indices = stored(LEVELS, bits)
    table = np.arange(3 << bits).reshape(3, -1) * 37 % 256
    table[0, :2] = 0, 255
    data = tiff_of(indices, bits, 3, t320=(3, (table if small else table * 257).ravel().tolist()))
    assert (read(data) == table.T[indices.astype(int)]).all()


def test_cmyk_in_planes():
    samples = stored(np.dstack([RGB, LEVELS * 0]), 16)
    pixels = read(tiff_of(samples, 16, 5, planar=2))
    assert np.abs(pixels - (255 - in_8_bits(samples[..., :3], 16))).max() <= 1


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("chunk", [1, 2])
def test_uncompressed_ycbcr(chunk, narrow):
    """Blocks of `chunk` x `chunk` luminances share a colour; `narrow` ones start at 16."""
    luminance, colour = np.repeat(np.repeat([[60, 120], [180, 230]], 8, 0), 8, 1), (90, 170)
    blocks = luminance.reshape(16 // chunk, chunk, 16 // chunk, chunk).swapaxes(1, 2)
    blocks = blocks.reshape(16 // chunk, 16 // chunk, -1)
    rows = np.concatenate([blocks, np.broadcast_to(colour, (*blocks.shape[:2], 2))], -1)
    low, high = (16, 235) if narrow else (0, 255)
    tags = [(low, 1), (high, 1), (128, 1), (240 if narrow else 255, 1)] * 2
    entries = {256: (4, 16), 257: (4, 16), 258: (3, [8] * 3), 259: (3, 1), 262: (3, 6),
               277: (3, 3), 278: (3, 16), 530: (3, [chunk] * 2),
               532: (5, [*tags[:4], *tags[2:4]])}  # fmt: skip
    pixels = read(file_of([(entries, [rows.astype(np.uint8).tobytes()])]))
    y = (luminance - low) * 255 / (high - low)
    cb, cr = (np.array(colour) - 128) * (127 / (112 if narrow else 127))
    expected = np.dstack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb])
    assert np.abs(pixels - np.clip(expected, 0, 255)).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation):
    samples = stored(RGB, 8)
    plain, planes = (
        read(tiff_of(samples, planar=planar, t274=(3, orientation))) for planar in (1, 2)
    )
    assert plain.shape == ((20, 24, 3) if orientation < 5 else (24, 20, 3))
    assert (plain == planes).all()


def test_profiles():
    samples = stored(RGB, 8)
    profile = {"t34675": (7, ADOBE_LIKE)}
    plain, planes = (read(tiff_of(samples, planar=planar, **profile)) for planar in (1, 2))
    assert (plain == planes).all()
    assert np.abs(plain.astype(int) - samples.astype(int)).max() > 10


PAGE = {256: (4, 24), 257: (4, 20), 258: (3, [8] * 3), 259: (3, 1), 262: (3, 2), 277: (3, 3)}
SMALL = {256: (4, 12), 257: (4, 10), 258: (3, 8), 259: (3, 1), 262: (3, 1)}


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("first", [{254: (4, 1)}, {255: (3, 2)}, {254: (4, 4), 262: (3, 4)}])
def test_thumbnails_and_masks_are_not_the_picture(first, order, big):
    samples = stored(RGB, 8).astype(np.uint8)
    pages = [(SMALL | first, [bytes(120)]), (PAGE, [samples.tobytes()]), (SMALL, [bytes(120)])]
    assert (read(file_of(pages, order=order, big=big)) == samples).all()
    assert read(file_of([(SMALL | {254: (4, 1)}, [bytes(120)])])).shape == (10, 12, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff_of(LEVELS * 255, 32), "32-bit image, whose range is unknown"),
        (tiff_of(LEVELS * 255, 24), "24-bit image, whose range is unknown"),
        (tiff_of(RGB * 255, 32, planar=2), "32-bit image, whose range is unknown"),
        *((tiff_of(LEVELS * 99, bits, format=2), "signed") for bits in (8, 16, 32)),
        (tiff_of(LEVELS * 99, 16, format=3), "floating-point"),
        (tiff_of(LEVELS * 255, 8, compression=34887), "LERC"),
        (tiff_of(RGB * 255, 8, compression=50001), "WebP"),
        (tiff_of(RGB * 255, 8, 9), "ICCLab"),
        (tiff_of(RGB * 255, 8, 32845), "LogLuv"),
        (tiff_of(LEVELS * 255, 16, 32803), "raw"),
        (tiff_of(LEVELS * 255, 8, t50706=(1, [1, 4, 0, 0])), "DNG"),
        (tiff_of(np.dstack([RGB, RGB]) * 255, 8), "6 samples"),
        (tiff_of(np.dstack([RGB, LEVELS]) * 255, 8, 5, t332=(3, 2)), "CMYK"),
        (tiff_of(np.dstack([LEVELS, LEVELS]) * 255, 8, 0, extra=(1,)), "2 samples"),
        (file_of([(SMALL | {254: (4, 4)}, [bytes(120)])]), "masks"),
        (file_of([(SMALL | {254: (4, 1), 330: (4, 8)}, [bytes(120)])]), "reduced"),
    ],
)
def test_what_cannot_be_read_rightly_is_refused_with_its_kind(data, reason):
    with pytest.raises(InputError, match=reason) as caught:
        read(data)
    assert "damaged" not in caught.value.message


@pytest.mark.parametrize("layout", [{}, {"compression": 5}, {"compression": 8}, {"tile": 16}])
def test_what_lacks_data_is_damaged(layout):
    pages = [tiff_of(stored(RGB, bits), bits, planar=2, **layout) for bits in (8, 12)]
    for data in pages:
        end = len(data) - 400
        head = bytearray(data)
        with pytest.raises(InputError, match="damaged"):
            read(bytes(head[:end]))

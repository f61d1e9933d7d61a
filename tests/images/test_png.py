"""PNGs with much text, odd transparency or colours in numbers: the right pixels, or the reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from stae_cli.errors import InputError
from stae_cli.images.png import ADAM7
from stae_cli.images.read import open_image
from tests.difficult import ADOBE_LIKE, LINEAR_GREY, SRGB, png_chunk, png_of

LEVELS = np.arange(0, 240, 5, dtype=np.uint8).reshape(4, 4, 3)


def read(data):
    return open_image(io.BytesIO(data)).pixels()


def png(*before, rows=None, behind=b"", depth=8, kind=2, width=4, height=4):
    """A PNG with these chunks before and behind its pixels; those of LEVELS unless given."""
    rows = b"".join(b"\0" + row.tobytes() for row in LEVELS) if rows is None else rows
    plain = png_of(width, height, depth=depth, kind=kind, rows=rows, behind=behind)
    return plain[:33] + b"".join(png_chunk(*chunk) for chunk in before) + plain[33:]


def packed_text(name, size, keyword=b"workflow"):
    text = zlib.compress(b"x" * size)
    fields = b"\0\1\0\0\0" if name == b"iTXt" else b"\0\0"
    return name, keyword + fields + text


BIG = 1200 << 10  # more than Pillow unpacks
PADDED = struct.pack(">I", BIG) + ADOBE_LIKE[4:].ljust(BIG - 4, b"\0")


@pytest.mark.parametrize(
    "chunks",
    [
        [packed_text(b"zTXt", BIG)],
        [packed_text(b"iTXt", BIG)],
        [packed_text(b"zTXt", 1 << 20)] * 70,
        [(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b" " * BIG)],
        [packed_text(b"iTXt", BIG, b"XML:com.adobe.xmp")],
        [(b"zTXt", b"broken")],
    ],
)
def test_texts_are_not_read(chunks):
    assert (read(png(*chunks)) == LEVELS).all()
    behind = b"".join(png_chunk(*chunk) for chunk in chunks)
    assert (read(png(behind=behind)) == LEVELS).all()


TURNING = b'<x:xmpmeta tiff:Orientation="3"/>'
EXIF = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"
HEX = EXIF.hex().encode() + b"00" * BIG


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize(
    "chunk",
    [
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + TURNING + b" " * BIG),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b" " * BIG + TURNING)),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n%d\n" % BIG + HEX)),
        (b"eXIf", EXIF[6:] + bytes(BIG)),
    ],
)
def test_large_texts_may_turn(chunk, is_late):
    text = packed_text(b"zTXt", BIG)
    data = png(text, behind=png_chunk(*chunk)) if is_late else png(chunk, text)
    assert (read(data) == LEVELS[::-1, ::-1]).all()


def test_bombs_do_no_harm():
    bomb = zlib.compress(bytes(33 << 20), 1)
    for chunk in (
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb),
        (b"zTXt", b"Raw profile type exif\0\0" + bomb),
        (b"iCCP", b"name\0\0" + bomb),
    ):
        with pytest.raises(InputError, match="larger than 32 MB"):
            read(png(chunk))


def test_large_profiles_apply():
    small, large = (
        read(png((b"iCCP", b"name\0\0" + zlib.compress(profile))))
        for profile in (ADOBE_LIKE, PADDED)
    )
    assert (small == large).all()
    assert (small != LEVELS).any()


def test_a_broken_profile_chunk_is_damage():
    data = bytearray(png((b"iCCP", b"name\0\0" + zlib.compress(SRGB))))
    data[80] ^= 1
    with pytest.raises(InputError, match=r"damaged.*iCCP"):
        read(bytes(data))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("excess", [0, 256])
def test_a_transparent_grey(depth, excess):
    """Bits above the depth do not count."""
    peak = 2**depth - 1
    levels = np.round(np.linspace(0, peak, 8)).astype(int)
    clear = int(levels[3])
    if depth == 16:
        row = levels.astype(">u2").tobytes()
    else:
        row = int("".join(f"{level:0{depth}b}" for level in levels), 2).to_bytes(depth, "big")
    tag = struct.pack(">H", clear + excess * (depth < 16))
    data = png((b"tRNS", tag), rows=b"\0" + row, depth=depth, kind=0, width=8, height=1)
    grey = levels >> 8 if depth == 16 else levels * 255 // peak
    assert read(data)[0, :, 1].tolist() == np.where(levels == clear, 255, grey).tolist()


@pytest.mark.parametrize("interlaced", [False, True])
def test_a_transparent_colour_of_16_bits(interlaced):
    colours = np.array([[0x1234, 0x5678, 0x9ABC], [0x1235, 0x5678, 0x9ABC], [0x34, 0x78, 0xBC]])
    row = b"\0" + colours[:1].astype(">u2").tobytes() if interlaced else b""
    data = [png((b"tRNS", struct.pack(">HHH", *colours[0])), depth=16, width=3, height=1,
                rows=b"\0" + colours.astype(">u2").tobytes())]  # fmt: skip
    if interlaced:  # one pixel is the whole of the first pass
        plain = bytearray(
            png((b"tRNS", struct.pack(">HHH", *colours[0])), depth=16, rows=row, width=1, height=1)
        )
        plain[28] = 1
        plain[29:33] = struct.pack(">I", zlib.crc32(plain[12:29]))
        assert (read(bytes(plain)) == 255).all()
    assert read(data[0])[0].tolist() == [[255] * 3, [0x12, 0x56, 0x9A], [0, 0, 0]]


def test_a_transparent_colour_of_8_bits():
    data = png((b"tRNS", struct.pack(">HHH", 256 + 30, 35, 40)))
    assert np.argwhere((read(data) == 255).all(-1)).tolist() == [[0, 2]]


def test_grey_with_alpha_of_16_bits_may_have_a_profile():
    rows = b"\0" + np.array([30000, 65535], ">u2").tobytes()
    profile = (b"iCCP", b"name\0\0" + zlib.compress(LINEAR_GREY))
    plain, converted = (
        read(png(*chunks, rows=rows, depth=16, kind=4, width=1, height=1))[0, 0, 0]
        for chunks in ([], [profile])
    )
    assert (plain, converted) == (117, 180)


def linear(values):
    return np.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)


def srgb(light):
    light = np.clip(light, 0, 1)
    return 255 * np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, light * 12.92)


FROM_P3 = np.array(  # linear Display P3 to linear sRGB, as CSS Color 4 gives it
    [[1.2249401, -0.2249404, 0], [-0.0420569, 1.0420571, 0], [-0.0196376, -0.0786361, 1.0982735]]
)


def test_coded_colours_come_before_a_profile():
    profile = b"iCCP", b"name\0\0" + zlib.compress(ADOBE_LIKE)
    values = LEVELS / 255
    assert (read(png((b"cICP", bytes((1, 13, 0, 1))), profile)) == LEVELS).all()
    assert (read(png((b"cICP", bytes((1, 1, 0, 1))), profile)) == LEVELS).all()
    wide = read(png((b"cICP", bytes((12, 13, 0, 1))), profile))
    assert np.abs(wide - srgb(linear(values) @ FROM_P3.T)).max() <= 1.5
    light = read(png((b"cICP", bytes((1, 8, 0, 1))), profile))
    assert np.abs(light - srgb(values)).max() <= 1.5
    unspecified = read(png((b"cICP", bytes((2, 2, 0, 1))), profile))
    assert (unspecified == read(png(profile))).all()
    assert (unspecified != LEVELS).any()


def test_coded_greys():
    rows = b"\0" + bytes([0, 60, 128, 255])
    data = png((b"cICP", bytes((9, 8, 0, 1))), rows=rows, kind=0, height=1)
    assert np.abs(read(data)[0, :, 0] - srgb(np.array([0, 60, 128, 255]) / 255)).max() <= 1.5
    data = png((b"cICP", bytes((9, 13, 0, 1))), rows=rows, kind=0, height=1)
    assert read(data)[0, :, 0].tolist() == [0, 60, 128, 255]


@pytest.mark.parametrize(
    ("code", "reason"),
    [((9, 16, 0, 1), "HDR.*PQ"), ((9, 18, 0, 1), "HDR.*HLG"), ((1, 13, 0, 0), "video"),
     ((1, 13, 6, 1), "video"), ((99, 13, 0, 1), "99"), ((1, 99, 0, 1), "99")],
)  # fmt: skip
def test_coded_colours_that_do_not_fit_are_refused(code, reason):
    with pytest.raises(InputError, match=reason):
        read(png((b"cICP", bytes(code))))


def test_apples_own_form_is_named():
    with pytest.raises(InputError, match="CgBI"):
        read(png()[:8] + png_chunk(b"CgBI", bytes(4)) + png()[8:])


def test_pillows_limits_are_as_they_were():
    limit = PngImagePlugin.MAX_TEXT_CHUNK
    read(png(packed_text(b"zTXt", BIG)))
    assert limit == PngImagePlugin.MAX_TEXT_CHUNK
    with pytest.raises(ValueError, match="too large"):
        Image.open(io.BytesIO(png(packed_text(b"zTXt", BIG))))


@pytest.mark.parametrize(
    ("gamma", "others", "power"),
    [
        (100_000, [], 1.0),  # levels of light, as ray tracers write them
        (55_556, [], 1.8),
        (45_455, [], None),
        (45_000, [], None),
        (0, [], None),
        (100_000, [(b"sRGB", b"\0")], None),
        (100_000, [(b"cICP", bytes((1, 13, 0, 1)))], None),
    ],
)
def test_gamma_is_applied_where_it_differs_from_srgb(gamma, others, power):
    pixels = read(png((b"gAMA", struct.pack(">I", gamma)), *others)).astype(float)
    expected = LEVELS.astype(float)
    if power:
        light = (LEVELS / 255) ** power
        curved = 1.055 * light ** (1 / 2.4) - 0.055
        expected = 255 * np.where(light <= 0.0031308, 12.92 * light, curved)
    assert np.abs(pixels - expected).max() < (1.1 if power else 1e-9)


def test_the_callers_taste_for_truncated_files_changes_nothing(monkeypatch):
    """Many training scripts set it, and Pillow then fills what is missing with black."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for form in ("PNG", "GIF", "TIFF", "BMP", "PPM", "JPEG2000"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, form)
        assert read(file.getvalue()).shape == pixels.shape
        with pytest.raises(InputError):
            read(file.getvalue()[: len(file.getvalue()) // 2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("is_black", [False, True])
def test_rows_that_are_missing_are_noticed(is_black):
    """Pillow fills them with zeros; a picture that ends in black is sound all the same."""
    levels = np.zeros_like(LEVELS) if is_black else LEVELS
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    assert (read(png(rows=rows)) == levels).all()
    with pytest.raises(InputError, match="rows end early"):
        read(png(rows=rows[: len(rows) // 2]))


def test_an_interlaced_png_without_its_last_pass():
    whole, passes = np.full((8, 8), 9, np.uint8), b""
    for left, top, across, down in ADAM7:
        passes += b"".join(b"\0" + row.tobytes() for row in whole[top::down, left::across])
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1)

    def interlaced(rows):
        chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)

    assert (read(interlaced(passes)) == 9).all()
    with pytest.raises(InputError, match=r"rows end early|truncated"):
        read(interlaced(passes[:-20]))

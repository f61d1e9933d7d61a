"""PNGs and TIFFs with overwritten data are refused; sound ones are read as before."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from stae_cli.errors import InputError
from stae_cli.images import checks
from stae_cli.images.read import open_image
from tests.difficult import by_pillow, photo, png_chunk, png_of, saved, with_alpha
from tests.images.test_jpeg import smooth


def read(data, name=""):
    return open_image(io.BytesIO(data), name=name).pixels()


def wiped(data, place, size):
    return data[:place] + bytes(size) + data[place + size :]


def tiff_of(compression, pieces, *, mode="RGB", tile=None, more=()):
    """A 200x150 TIFF whose strips, or tiles, are these; one more tag may hold their place."""
    samples = len(Image.new(mode, (1, 1)).getbands())
    tags = {256: 200, 257: 150, 258: [8] * samples, 259: compression, 277: samples, **dict(more)}
    tags |= {262: {"L": 1, "RGB": 2, "YCbCr": 6, "CMYK": 5}[mode]}
    offsets, sizes = (324, 325) if tile else (273, 279)
    tags |= {322: tile, 323: tile} if tile else {278: 150 if len(pieces) < 4 else 16}
    lists = 10 + 12 * (len(tags) + 2) + 4
    starts = [lists + 1000 + sum(map(len, pieces[:index])) for index in range(len(pieces))]
    tags |= {offsets: starts, sizes: [len(piece) for piece in pieces]}
    tags |= {513: starts[0]} if 513 in tags else {}
    ifd, long = struct.pack("<H", len(tags)), b""
    for tag, value in sorted(tags.items()):
        values = value if isinstance(value, list) else [value]
        kind, size = (7, 1) if isinstance(value, bytes) else (4, 4) if tag > 270 else (3, 2)
        packed = value if kind == 7 else b"".join(one.to_bytes(size, "little") for one in values)
        ifd += struct.pack("<HHI", tag, kind, len(packed) // size)
        if len(packed) > 4:
            packed, long = struct.pack("<I", lists + len(long)), long + packed
        ifd += packed.ljust(4, b"\0")
    return b"II\x2a\0\x08\0\0\0" + ifd + bytes(4) + long.ljust(1000, b"\0") + b"".join(pieces)


def jpeg_of(image, **options):
    return saved(image, "JPEG", **options)


def lossless_jpeg():
    """A grey of 128: each pixel is the zero bit, no difference to the one before."""
    frame = b"\xff\xc3\0\x0b\x08" + struct.pack(">HHB", 150, 200, 1) + b"\1\x11\0"
    table = b"\xff\xc4\0\x14\0\1" + bytes(15) + b"\0"
    return b"\xff\xd8" + frame + table + b"\xff\xda\0\x08\1\1\0\1\0\0" + bytes(3750) + b"\xff\xd9"


def in_tiles(**options):
    padded = Image.new("RGB", (224, 160))
    padded.paste(smooth())
    corners = [(x, y) for y in range(0, 160, 32) for x in range(0, 224, 32)]
    tiles = [jpeg_of(padded.crop((x, y, x + 32, y + 32)), **options) for x, y in corners]
    return tiff_of(7, tiles, mode="YCbCr", tile=32, more={530: [2, 2]})


TIFFS = {
    **{
        f"jpeg {mode}": lambda mode=mode: saved(smooth().convert(mode), "TIFF", compression="jpeg")
        for mode in ("RGB", "L", "CMYK", "YCbCr", "RGBA")
    },
    "jpeg in tiles": in_tiles,
    "jpeg in planes": lambda: tiff_of(
        7, [jpeg_of(band) for band in smooth().split()], more={284: 2}
    ),
    "old jpeg": lambda: tiff_of(
        6, [jpeg_of(smooth())], mode="YCbCr", more={512: 1, 513: 0, 514: 1 << 20, 530: [2, 2]}
    ),
    "deflate": lambda: saved(smooth(), "TIFF", compression="tiff_adobe_deflate"),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_tiffs(kind):
    whole = TIFFS[kind]()
    assert np.array_equal(read(whole), by_pillow(whole))
    body = whole.rindex(b"\xff\xda") + 30 if "jpeg" in kind else len(whole) * 2 // 3
    with pytest.raises(InputError, match="damaged or truncated"):
        read(wiped(whole, body, 100))


def test_lossless_jpegs():
    for data in (lossless_jpeg(), tiff_of(7, [lossless_jpeg()], mode="L")):
        assert (read(data) == 128).all()


@pytest.mark.parametrize("inflate", [zlib, checks.inflate])
@pytest.mark.parametrize("damage", ["zeros", "no checksum", "half"])
def test_deflated_strips(damage, inflate, monkeypatch):
    monkeypatch.setattr(checks, "inflate", inflate)
    strip = zlib.compress(smooth().tobytes(), 0)  # stored as it is: only the checksum can tell
    damaged = {"zeros": wiped(strip, 900, 500), "no checksum": strip[:-4], "half": strip[:40_000]}
    assert np.array_equal(read(tiff_of(8, [strip])), np.asarray(smooth()))
    with pytest.raises(InputError, match="damaged or truncated"):
        read(tiff_of(8, [damaged[damage]]))


def test_pngs():
    rows = b"".join(b"\0" + bytes(range(200)) for _ in range(150))
    whole = png_of(200, 150, rows=rows)
    parts = whole.index(b"IDAT") + 4
    assert read(whole)[9, :, 1].tolist() == list(range(200))
    stored = whole[: parts - 8] + png_chunk(b"IDAT", zlib.compress(rows, 0)) + whole[-12:]
    assert np.array_equal(read(stored), read(whole))
    for size in (500, len(stored) - 12 - parts - 9000, len(stored) - parts - 9000):
        with pytest.raises(InputError, match="the checksum of its data is wrong"):
            read(wiped(stored, parts + 9000, size))
    with pytest.raises(InputError, match="truncated"):
        read(stored[:-15])


@pytest.mark.parametrize("lost", [1, 20])
def test_tgas_that_lack_bytes_have_a_footer_for_pixels(lost):
    whole = saved(smooth(), "TGA")
    assert np.array_equal(read(whole, "a.tga"), by_pillow(whole))
    assert np.array_equal(read(whole[:-26], "a.tga"), by_pillow(whole))
    with pytest.raises(InputError, match="truncated"):
        read(whole[:900] + whole[900 + lost :], "a.tga")


def test_run_length_bmps():
    rows = bytes((200, 7, 0, 0)) * 150 + b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, 200, 150, 1, 8, 1, len(rows), 0, 0, 256, 0)
    palette = b"".join(bytes((level, level, level, 0)) for level in range(256))
    whole = b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078) + head + palette + rows
    assert (read(whole) == 7).all()
    with pytest.raises(InputError, match="truncated"):
        read(whole[:1100] + whole[1102:])


WEBPS = {
    "lossy": lambda: saved(smooth(), "WEBP", quality=70),
    "lossless": lambda: saved(smooth(), "WEBP", lossless=True),
    "with alpha": lambda: saved(with_alpha(), "WEBP", quality=70),
    "animated": lambda: saved(smooth(), "WEBP", save_all=True, append_images=[photo(200, 150)]),
    "flat": lambda: saved(Image.new("RGB", (200, 150), (9, 200, 30)), "WEBP"),
    "one pixel": lambda: saved(photo(1, 1), "WEBP", lossless=True),
}


@pytest.mark.parametrize("kind", WEBPS)
def test_webps(kind):
    whole = WEBPS[kind]()
    assert np.array_equal(read(whole), by_pillow(whole))
    if kind in ("lossy", "lossless"):
        with_zeros = len(whole) + 20
        sizes = [struct.pack("<I", with_zeros - header) for header in (8, 20)]
        padded = whole[:4] + sizes[0] + whole[8:16] + sizes[1] + whole[20:] + bytes(20)
        assert np.array_equal(read(padded), by_pillow(whole))
    if kind in ("lossy", "lossless", "with alpha", "animated"):
        data = whole.index(b"VP8") + 8
        with pytest.raises(InputError, match="damaged or truncated"):
            read(wiped(whole, data + int.from_bytes(whole[data - 4 : data], "little") // 2, 50))

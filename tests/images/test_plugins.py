"""HEIC and JPEG XL through their plugins: by value, upright, and nothing silently wrong."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from stae_cli.errors import InputError
from stae_cli.images import plugins
from stae_cli.images.coded_colours import profile_of
from stae_cli.images.jpegxl import read_header
from stae_cli.images.read import IMAGE_SUFFIXES, open_image
from tests.pictures import noise

pillow_heif = pytest.importorskip("pillow_heif", reason="needs pip install 'stae[heif]'")
pillow_jxl = pytest.importorskip("pillow_jxl", reason="needs pip install 'stae[heif]'")

PIXELS = noise(48, 32)
ALPHA = noise(48, 32, seed=1)[..., :1]
P3 = profile_of(12, 13)


def read(data, name="x"):
    return open_image(io.BytesIO(data), name=name).pixels().astype(int)


def heic(pixels, mode="RGB", size=(48, 32), info=None, **options):
    image = pillow_heif.from_bytes(mode, size, pixels.tobytes())
    image.info.update(info or {})
    out = io.BytesIO()
    image.save(out, quality=-1, chroma=444, **{"matrix_coefficients": 0, **options})
    return out.getvalue()


def jxl(image, **options):
    out = io.BytesIO()
    image.save(out, "JXL", lossless=True, **options)
    return out.getvalue()


def png(image, **options):
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def turned(orientation):
    image = Image.fromarray(PIXELS)
    image.getexif()[0x0112] = orientation
    return np.asarray(ImageOps.exif_transpose(image)).astype(int)


def test_suffixes_and_signatures():
    assert {".heic", ".heif", ".jxl"} <= IMAGE_SUFFIXES
    for data in (heic(PIXELS), jxl(Image.fromarray(PIXELS)),
                 jxl(Image.fromarray(PIXELS), use_container=True)):  # fmt: skip
        for name in ("x.heic", "phone.jpg", ""):
            assert np.array_equal(read(data, name), PIXELS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_turned_once(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    # The plugin turns the file itself, and notes the orientation in EXIF too, as phones do.
    image = Image.fromarray(PIXELS)
    pillow_heif.register_heif_opener()
    image.save(out, "HEIF", quality=-1, chroma=444, matrix_coefficients=0, exif=exif.tobytes())
    assert np.array_equal(read(out.getvalue()), turned(orientation))


@pytest.mark.parametrize("mode", ["RGBA", "RGBa"])
@pytest.mark.parametrize("icc", [None, P3])
def test_heic_with_alpha(mode, icc):
    straight = Image.fromarray(np.dstack([PIXELS, ALPHA]))
    stored = straight.convert(mode)
    info = {"icc_profile": icc, "icc_profile_type": "prof"} if icc else {}
    data = heic(np.frombuffer(stored.tobytes(), np.uint8), mode, info=info)
    expected = read(png(stored.convert("RGBA"), icc_profile=icc))
    assert np.abs(read(data) - expected).max() <= 1


def test_heic_of_more_bits_grey_and_several():
    deep = heic(PIXELS.astype(np.uint16) * 257, "RGB;16")
    assert open_image(io.BytesIO(deep))._image.info["bit_depth"] == 10
    assert np.abs(read(deep) - PIXELS).max() <= 1
    grey = heic(PIXELS[..., 0].copy(), "L", matrix_coefficients=1)
    assert np.abs(read(grey) - PIXELS[..., :1]).max() <= 1
    several = pillow_heif.HeifFile()
    for value in (10, 100, 200):
        several.add_from_pillow(Image.new("RGB", (64, 64), (value,) * 3))
    out = io.BytesIO()
    several.save(out, quality=-1, primary_index=1)
    assert np.unique(read(out.getvalue())).tolist() == [100]


def test_colours_of_heic():
    expected = read(png(Image.fromarray(PIXELS), icc_profile=P3))
    assert np.abs(expected - PIXELS).max() > 5
    info = {"icc_profile": P3, "icc_profile_type": "prof"}
    assert np.array_equal(read(heic(PIXELS, info=info)), expected)
    coded = {"color_primaries": 12, "transfer_characteristics": 13}
    assert np.array_equal(read(heic(PIXELS, **coded)), expected)
    with pytest.raises(InputError, match="PQ"):
        read(heic(PIXELS, color_primaries=9, transfer_characteristics=16))


def test_damaged_heic_is_refused():
    data = heic(noise(256, 256), size=(256, 256))
    assert read(data).shape == (256, 256, 3)
    damaged = [data[:cut] for cut in (20, 200, len(data) // 2, len(data) - 1)]
    for begin in (len(data) // 2, len(data) - 600):
        damaged.append(data[:begin] + bytes(512) + data[begin + 512 :])  # a block that was lost
    damaged.append(data[: len(data) // 2].ljust(len(data), b"\0"))  # a download that was not ended
    meta = data.index(b"meta")
    damaged += [data.replace(kind, b"free") for kind in (b"iloc", b"iinf", b"hvcC")]
    damaged.append(data[:meta] + b"free" + data[meta + 4 :])
    for each in damaged:
        with pytest.raises(InputError, match=r"damaged|truncated"):
            read(each)


def with_bits(data, *edits):
    """A bare JPEG XL with other bits in its header: 16 more, since what follows is in bytes."""
    text = "".join(f"{byte:08b}"[::-1] for byte in data[2:])
    for at, taken, bits in reversed(edits):
        text = text[:at] + bits + text[at + taken :]
    assert len(text) % 8 == 0
    return data[:2] + bytes(int(text[i : i + 8][::-1], 2) for i in range(0, len(text), 8))


FIELDS = 9  # bits of the size 48x32 come first
CHANNELS = FIELDS + 1 + 1 + 3 + 1  # not all as usual, no more fields, 8 bits, small numbers
COLOURS_END = CHANNELS + 2 + 1 + 1  # no other channels, RGB, sRGB


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_xl_is_turned_once(orientation):
    turn = f"{orientation - 1:03b}"[::-1]
    shown_at = "1" + "00000" + "100"  # 8x8, which means nothing to pixels
    data = with_bits(
        jxl(Image.fromarray(PIXELS)),
        (FIELDS + 1, 1, "1" + turn + "1" + shown_at + "00"),
        (COLOURS_END, 0, "1"),
    )
    image = open_image(io.BytesIO(data))
    assert (image.height, image.width) == turned(orientation).shape[:2]
    assert np.array_equal(image.pixels(), turned(orientation))


def test_exif_turns_no_jpeg_xl():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jxl(Image.fromarray(PIXELS), exif=exif.tobytes(), use_container=True)
    assert np.array_equal(read(data), PIXELS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_in_jpeg_xl_is_turned_once(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(tmp_path / "x.jpg", quality=95, exif=exif)
    with Image.open(tmp_path / "x.jpg") as image, pytest.warns(UserWarning, match="lossless"):
        data = jxl(image)
    assert b"jbrd" in data
    assert np.array_equal(read(data), read((tmp_path / "x.jpg").read_bytes()))


@pytest.mark.parametrize("grey", [False, True])
def test_alpha_of_jpeg_xl(grey):
    colours = PIXELS[..., :1] if grey else PIXELS
    image = Image.fromarray(np.dstack([colours, ALPHA]).squeeze())
    bare = jxl(image)
    assert np.array_equal(read(bare), read(png(image)))
    # The same channel, described in full: 8 bits the long way, and multiplied into the colours.
    described = "0" + "00" + "0" + "11" + f"{7:06b}"[::-1] + "00" + "00" + "1"
    multiplied = Image.frombytes("La" if grey else "RGBa", image.size, image.tobytes())
    expected = read(png(multiplied.convert(image.mode)))
    assert read_header(io.BytesIO(bare)).multiplied is False
    more = with_bits(bare, (CHANNELS + 2, 1, described))
    assert read_header(io.BytesIO(more)).multiplied is True
    assert np.array_equal(read(more), expected)


def test_more_of_jpeg_xl():
    linear = (PIXELS[..., :1] / 255) ** 2.2 * 65535  # as the plugin says of 16 bits
    deep = Image.fromarray(linear[..., 0].astype(np.uint16))
    assert np.abs(read(jxl(deep)) - PIXELS[..., :1])[PIXELS[..., 0] > 99].max() <= 3
    coded = bytes.fromhex(  # 8x8 of (200, 100, 50) in Display P3, by cjxl 0.7
        "ff0a414008a7080312e601b0e9eac801d5562e13ff226a67b085d8535d8a2a03c294e8d2741adf02bc0ce4a7d1ae"
        "95c3c5e93470e017a6fbf3efdfbf3b58c51f189b0b91391834183a3210698e0a9435d704e59e20dd0c7a8442b4db"
        "d7fa000802010060004b188b15c2494361be40040087dcb1020000000000000000"
    )
    assert np.unique(read(coded), axis=1).tolist() == [[[215, 93, 31]]] * 8
    animated = bytes.fromhex(  # two frames, of which the plugin gives the last one
        "ff0a41044d0020260804010038004b188b158055ea7f000c655c4d08080405003c004b188b15805dd4ff0018"
        "92ae9a4002"
    )
    with pytest.raises(InputError, match="animated"):
        read(animated)


def test_damaged_jpeg_xl_is_refused(monkeypatch):
    for data in (jxl(Image.fromarray(PIXELS)), jxl(Image.fromarray(PIXELS), use_container=True)):
        middle = len(data) // 2
        for each in (
            data[:20],
            data[:60],
            data[:-1],
            data[:middle] + bytes(99) + data[middle + 99 :],
        ):
            with pytest.raises(InputError, match=r"damaged|truncated"):
                read(each)
    monkeypatch.setattr("stae_cli.images.read.MAX_PIXELS", 1000)
    monkeypatch.setattr("stae_cli.images.jpegxl.JpegXL.load", None)
    with pytest.raises(InputError, match="48x32 pixels are more"):
        read(data)


@pytest.mark.parametrize("name", ["HEIC", "JPEG XL"])
def test_without_its_plugin_a_file_is_named(name, monkeypatch):
    data = heic(PIXELS) if name == "HEIC" else jxl(Image.fromarray(PIXELS))
    monkeypatch.setattr(plugins, "INSTALLED", set())
    with pytest.raises(InputError, match=rf"a {name} image, .*pip install 'stae\[heif\]'"):
        read(data, "phone.jpg")

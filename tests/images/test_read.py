"""Images of every kind: equal to Pillow's own conversion of the file, or a sound reason."""

import contextlib
import io
import random
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, features

from stae_cli.errors import InputError
from stae_cli.images.read import MAX_PIXELS, open_image
from tests.difficult import (
    ADOBE_LIKE,
    CASES,
    LINEAR_GREY,
    SRGB,
    by_pillow,
    photo,
    png_chunk,
    png_of,
    saved,
    with_alpha,
)

HAS_AVIF = features.check("avif")


def read(data, name="", background=(255, 255, 255)):
    image = open_image(io.BytesIO(data), name=name)
    pixels = image.pixels(background)
    assert pixels.shape == (image.height, image.width, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    return pixels


@pytest.mark.parametrize("kind", CASES)
def test_equal_to_pillow(kind):
    data = CASES[kind]()
    assert np.array_equal(read(data), by_pillow(data))


def test_tga_is_known_by_its_suffix_alone():
    data = saved(photo(), "TGA")
    assert np.array_equal(read(data, name="a/b.TGA"), by_pillow(data))
    with pytest.raises(InputError, match="not an image"):
        read(data, name="b.jpg")


@pytest.mark.skipif(not HAS_AVIF, reason="this Pillow has no AVIF")
def test_avif():
    data = saved(photo(64, 48), "AVIF")
    assert np.array_equal(read(data), by_pillow(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)  # fmt: skip
def test_exif_orientation(format, options, orientation):  # noqa: A002
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(photo(), format, exif=exif, **options)
    assert np.array_equal(read(data), by_pillow(data))
    image = open_image(io.BytesIO(data))
    assert (image.width, image.height) == ((50, 35) if orientation < 5 else (35, 50))


EXIF_TURNED = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
XMP_TURNED = b'<x:xmpmeta tiff:Orientation="6"/>'
RAW_PROFILE = (
    f"\nexif\n{6 + len(EXIF_TURNED)}\n{(b'Exif' + bytes(2) + EXIF_TURNED).hex()}\n".encode()
)


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"eXIf", EXIF_TURNED),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP_TURNED),
        png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW_PROFILE)),
    ],
    ids=["exif", "xmp", "raw profile"],
)
def test_a_png_may_tell_its_orientation_at_its_end(chunk):
    rows = b"".join(b"\0" + bytes([level] * 5) for level in (0, 90, 200))
    comment = png_chunk(b"tEXt", b"date:create\0today")
    data = png_of(5, 3, rows=rows, behind=comment + chunk)
    assert read(data)[0, :, 0].tolist() == [200, 90, 0]
    assert np.array_equal(read(data), by_pillow(data))


def test_opening_a_png_reads_no_pixels(monkeypatch):
    data = CASES["rgb png"]()
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    assert open_image(io.BytesIO(data)).width == 50


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_nonsense_orientation_is_none(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(photo(), "JPEG", exif=exif)
    assert read(data).shape == (35, 50, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_no_harm():
    data = saved(photo(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert read(data).shape == (35, 50, 3)


def test_deep_grey_keeps_its_upper_bits():
    levels = np.array([[0, 255, 256, 32768, 65280, 65535]], dtype=np.uint16)
    for form in ("PNG", "TIFF"):
        pixels = read(saved(Image.fromarray(levels), form))
        assert pixels[0, :, 0].tolist() == [0, 0, 1, 128, 255, 255]
        assert (pixels[..., 0] == pixels[..., 2]).all()


def test_deep_colours_are_pillows():
    rows = b"".join(b"\0" + bytes([n, 0, 255 - n, 7, n, n]) for n in (1, 128, 255))
    data = png_of(1, 3, depth=16, kind=2, rows=rows)
    assert np.array_equal(read(data), by_pillow(data))
    assert read(data)[:, 0, 0].tolist() == [1, 128, 255]


def test_floats_and_32_bit_integers_are_refused():
    for values in (np.random.default_rng(0).random((4, 4), np.float32), np.int32([[-1, 70000]])):
        with pytest.raises(InputError, match="range"):
            read(saved(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 200, 30)])
def test_backgrounds(background):
    data = saved(with_alpha(), "PNG")
    assert np.array_equal(read(data, background=background), by_pillow(data, background))


def converted(image, profile, mode="RGB"):
    return np.asarray(
        ImageCms.profileToProfile(
            image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode=mode
        )
    )


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_wide_gamut_profiles_are_converted(form):
    data = saved(photo(), form, icc_profile=ADOBE_LIKE)
    with Image.open(io.BytesIO(data)) as plain:
        expected = converted(plain.convert("RGB"), ADOBE_LIKE)
        assert np.array_equal(read(data), expected)
        assert np.abs(expected.astype(int) - np.asarray(plain.convert("RGB"))).max() > 10


def test_a_profile_applies_before_transparency_shows():
    image = with_alpha()
    data = saved(image, "PNG", icc_profile=ADOBE_LIKE)
    colours = Image.fromarray(converted(image.convert("RGB"), ADOBE_LIKE))
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(colours, mask=image.getchannel("A"))
    assert np.array_equal(read(data), np.asarray(canvas))


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "PA"])
def test_profiles_of_colours_fit_every_mode(mode):
    image = Image.open(io.BytesIO(saved(photo().quantize(64), "PNG"))).convert("RGB")
    form = "TIFF" if mode == "PA" else "PNG"
    data = saved(image.quantize(64) if mode == "P" else image.convert(mode), form,
                 icc_profile=ADOBE_LIKE)  # fmt: skip
    plain = Image.open(io.BytesIO(data)).convert("RGB")
    assert np.array_equal(read(data), converted(plain, ADOBE_LIKE))


@pytest.mark.parametrize("mode", ["L", "LA", "1", "L, one level clear", "I;16"])
def test_profiles_of_greys_fit_every_mode(mode):
    grey = photo().convert("L")
    options = {"transparency": 300} if "," in mode else {}
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) << 8)
    else:
        image = grey.convert(mode.partition(",")[0])
    data = saved(image, "PNG", icc_profile=LINEAR_GREY, **options)
    plain = image.convert("L") if mode == "1" else grey
    expected = converted(plain, LINEAR_GREY)
    assert np.array_equal(read(data), expected)
    assert mode == "1" or np.abs(expected[..., 0].astype(int) - np.asarray(plain)).max() > 10


@pytest.mark.parametrize("profile", [SRGB, b"broken", b"\0" * 200, ADOBE_LIKE[:150]])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_srgb_broken_and_unfit_profiles_change_nothing(profile, mode):
    form = "TIFF" if mode == "CMYK" else "PNG"
    plain = saved(photo().convert(mode), form)
    data = saved(photo().convert(mode), form, icc_profile=profile)
    assert np.array_equal(read(data), read(plain))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000"])
def test_half_a_file_never_passes(form):
    whole = saved(photo(200, 150), form)
    for share in (0.02, 0.3, 0.5, 0.8, 0.95):
        with pytest.raises(InputError):
            read(whole[: int(len(whole) * share)])


@pytest.mark.parametrize("kind", ["rgb png", "palette png", "one-bit png"])
def test_a_flipped_bit_that_pillow_tells_of_never_passes(kind):
    whole = CASES[kind]()
    refused = 0
    for place in range(40, len(whole) - 20, max(1, len(whole) // 60)):
        data = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
        except (OSError, SyntaxError, ValueError):
            refused += 1
            with pytest.raises(InputError):
                read(data)
    assert refused > 5


@pytest.mark.parametrize(
    "data", [b"", b"x", b"not an image at all, just text", b"\xff\xd8\xff", b"\0" * 999]
)
def test_what_is_no_image(data):
    with pytest.raises(InputError) as caught:
        read(data)
    assert caught.value.message == ("not an image" if data else "empty file") or len(data) == 3


def test_bombs_are_refused_from_the_header():
    side = int(MAX_PIXELS**0.5) + 1
    bmp = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    bmp += struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    for data in (
        png_of(side, side),
        png_of(2**31 - 1, 2**31 - 1),
        bmp,
        b"P6 %d %d 255\n" % (side, side),
    ):
        with pytest.raises(InputError, match=r"million|damaged"):
            open_image(io.BytesIO(data))


def test_large_images_below_the_bound_are_let_in():
    assert open_image(io.BytesIO(png_of(20_000, 20_000))).width == 20_000


def test_threads_read_the_same_pixels():
    files = [CASES[kind]() for kind in ("jpeg 4:2:0", "rgba png", "palette png", "lzw tiff")]
    files.append(saved(photo(), "JPEG", icc_profile=ADOBE_LIKE))
    expected = [read(data) for data in files]

    def work(_index):
        for _ in range(10):
            for data, pixels in zip(files, expected, strict=True):
                assert np.array_equal(read(data), pixels)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))


FUZZED = ["jpeg 4:2:0", "progressive jpeg", "rgb png", "palette png, alpha bytes", "gif", "webp",
          "lzw tiff", "tiff", "bmp", "ppm", "cmyk jpeg", "jpeg 2000"]  # fmt: skip


@pytest.mark.parametrize("kind", FUZZED)
def test_mutated_files_are_read_or_refused(kind):
    whole, generator = CASES[kind](), random.Random(kind)
    for _ in range(40):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 8)):
            # Half of the changes hit the first bytes, where the sizes and kinds stand.
            reach = len(data) if generator.random() < 0.5 else min(len(data), 60)
            data[generator.randrange(reach)] = generator.randrange(256)
        if generator.random() < 0.2:
            del data[generator.randrange(len(data)) :]
        with contextlib.suppress(InputError):
            image = open_image(io.BytesIO(bytes(data)))
            if image.width * image.height < 10_000_000:
                image.pixels()

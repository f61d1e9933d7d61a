"""Images of every kind: equal to Pillow's own conversion of the file, or a sound reason."""

import contextlib
import io
import random
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, features

from stae_cli.errors import InputError
from stae_cli.files import images
from stae_cli.files.images import MAX_PIXELS, open_image
from tests.pictures import noise

HAS_AVIF = features.check("avif")


def saved(image, format, **options):  # noqa: A002
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def read(data, name="", background=(255, 255, 255)):
    image = open_image(io.BytesIO(data), name=name)
    pixels = image.pixels(background)
    assert pixels.shape == (image.height, image.width, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    return pixels


def by_pillow(data, background="white"):
    """Upright, on a background, RGB: what Pillow alone makes of the file."""
    with Image.open(io.BytesIO(data)) as opened:
        upright = ImageOps.exif_transpose(opened)
        rgba = upright.convert("RGBA")
        if rgba.getextrema()[3][0] == 255:
            return np.asarray(upright.convert("RGB"))
        canvas = Image.new("RGB", rgba.size, background)
        canvas.paste(rgba.convert("RGB"), mask=rgba.getchannel("A"))
        return np.asarray(canvas)


def photo(width=50, height=35, seed=0):
    return Image.fromarray(noise(width, height, seed))


def with_alpha(width=50, height=35):
    image = photo(width, height)
    image.putalpha(Image.fromarray(noise(width, height, 7)[..., 0]))
    return image


def palette_with_transparency(*, as_bytes):
    image = photo().quantize(16)
    image.info["transparency"] = bytes(range(0, 256, 16)) if as_bytes else 3
    return saved(image, "PNG", transparency=image.info["transparency"])


def animation(format, **options):  # noqa: A002
    frames = [photo(seed=seed) for seed in range(3)]
    return saved(frames[0], format, save_all=True, append_images=frames[1:], **options)


CASES = {
    "jpeg 4:4:4": lambda: saved(photo(), "JPEG", subsampling="4:4:4"),
    "jpeg 4:2:2": lambda: saved(photo(), "JPEG", subsampling="4:2:2"),
    "jpeg 4:2:0": lambda: saved(photo(51, 37), "JPEG", subsampling="4:2:0"),
    "progressive jpeg": lambda: saved(photo(), "JPEG", progressive=True),
    "grey jpeg": lambda: saved(photo().convert("L"), "JPEG"),
    "cmyk jpeg": lambda: saved(photo().convert("CMYK"), "JPEG"),
    "jpeg with restart markers": lambda: saved(photo(), "JPEG", restart_marker_rows=1),
    "rgb png": lambda: saved(photo(), "PNG"),
    "grey png": lambda: saved(photo().convert("L"), "PNG"),
    "one-bit png": lambda: saved(photo().convert("1"), "PNG"),
    "palette png": lambda: saved(photo().quantize(20), "PNG"),
    "palette png, clear index": lambda: palette_with_transparency(as_bytes=False),
    "palette png, alpha bytes": lambda: palette_with_transparency(as_bytes=True),
    "rgba png": lambda: saved(with_alpha(), "PNG"),
    "grey and alpha png": lambda: saved(with_alpha().convert("LA"), "PNG"),
    "grey png, clear level": lambda: saved(photo().convert("L"), "PNG", transparency=90),
    "rgb png, clear colour": lambda: saved(photo(), "PNG", transparency=(1, 2, 3)),
    "gif": lambda: saved(photo(), "GIF"),
    "animated gif": lambda: animation("GIF"),
    "webp": lambda: saved(photo(), "WEBP", quality=80),
    "lossless webp with alpha": lambda: saved(with_alpha(), "WEBP", lossless=True),
    "animated webp": lambda: animation("WEBP", lossless=True),
    "tiff": lambda: saved(photo(), "TIFF"),
    "lzw tiff": lambda: saved(photo(), "TIFF", compression="tiff_lzw"),
    "jpeg in tiff": lambda: saved(photo(), "TIFF", compression="jpeg"),
    "cmyk tiff": lambda: saved(photo().convert("CMYK"), "TIFF"),
    "tiled tiff": lambda: tiled_tiff(),
    "bmp": lambda: saved(photo(), "BMP"),
    "ppm": lambda: saved(photo(), "PPM"),
    "pgm": lambda: saved(photo().convert("L"), "PPM"),
    "jpeg 2000": lambda: saved(photo(), "JPEG2000"),
    "1x1": lambda: saved(photo(1, 1), "PNG"),
    "7x9": lambda: saved(photo(7, 9), "JPEG"),
    "5000x16": lambda: saved(photo(5000, 16), "JPEG"),
}


def tiled_tiff():
    """A 32x16 grey TIFF of two 16x16 tiles, which Pillow reads but does not write."""
    pixels = noise(32, 16)[..., 0]
    tags = [
        (256, 3, 1, 32), (257, 3, 1, 16), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (277, 3, 1, 1), (322, 3, 1, 16), (323, 3, 1, 16),
    ]  # fmt: skip
    ifd_size = 2 + 12 * (len(tags) + 2) + 4
    lists = 8 + ifd_size
    data = lists + 16
    tags += [(324, 4, 2, lists), (325, 4, 2, lists + 8)]
    ifd = struct.pack("<H", len(tags))
    for tag, kind, count, value in sorted(tags):
        ifd += struct.pack("<HHII", tag, kind, count, value)
    ifd += struct.pack("<I", 0) + struct.pack("<IIII", data, data + 256, 256, 256)
    tiles = pixels[:, :16].tobytes() + pixels[:, 16:].tobytes()
    return struct.pack("<2sHI", b"II", 42, 8) + ifd + tiles


@pytest.mark.parametrize("codec", ["simplejpeg", "pillow"])
@pytest.mark.parametrize("kind", CASES)
def test_equal_to_pillow(kind, codec, monkeypatch):
    if codec == "pillow":
        monkeypatch.setattr(images, "simplejpeg", None)
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
    with open_image_of(data) as image:
        assert (image.width, image.height) == ((50, 35) if orientation < 5 else (35, 50))


class open_image_of:  # noqa: N801
    def __init__(self, data):
        self.file = io.BytesIO(data)

    def __enter__(self):
        return open_image(self.file)

    def __exit__(self, *_):
        self.file.close()


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


def matrix_profile(gamma, primaries):
    """A minimal ICC v2 display profile: RGB primaries (XYZ, D50) and one gamma."""

    def s15(value):
        return struct.pack(">i", round(value * 65536))

    def xyz(values):
        return b"XYZ \0\0\0\0" + b"".join(map(s15, values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(4 + 4 + 2 + 1 + 67)
    parts = [
        (b"desc", text + bytes(-len(text) % 4)), (b"wtpt", xyz((0.9642, 1, 0.8249))),
        *((name, xyz(p)) for name, p in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)),
        (b"rTRC", curve), (b"gTRC", curve), (b"bTRC", curve),
    ]  # fmt: skip
    offset, table, body = 128 + 4 + 12 * len(parts), struct.pack(">I", len(parts)), b""
    for name, part in parts:
        table += name + struct.pack(">II", offset + len(body), len(part))
        body += part
    head = struct.pack(
        ">I4sI4s4s4s", offset + len(body), bytes(4), 0x02100000, b"mntr", b"RGB ", b"XYZ "
    )
    head += bytes(12) + b"acsp" + bytes(28) + s15(0.9642) + s15(1) + s15(0.8249)
    return head + bytes(128 - len(head)) + table + body


ADOBE_LIKE = matrix_profile(
    2.2, [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)]
)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


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


@pytest.mark.parametrize(
    "data", [b"", b"x", b"not an image at all, just text", b"\xff\xd8\xff", b"\0" * 999]
)
def test_what_is_no_image(data):
    with pytest.raises(InputError) as caught:
        read(data)
    assert caught.value.message == ("not an image" if data else "empty file") or len(data) == 3


def png_of(width, height, *, depth=8, kind=0, rows=b""):
    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


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
    wrong = []

    def work():
        for _ in range(10):
            for data, pixels in zip(files, expected, strict=True):
                if not np.array_equal(read(data), pixels):
                    wrong.append(data)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


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

"""Image files that are hard to read right: every kind and format, by Pillow or by hand."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms, ImageOps

from tests.pictures import noise


def saved(image, format, **options):  # noqa: A002
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


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
    "ycck jpeg": lambda: ycck_jpeg(),
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


def ycck_jpeg(image=None):
    """A CMYK JPEG whose Adobe marker says YCCK: Pillow reads these and writes none."""
    data = saved((image or photo()).convert("CMYK"), "JPEG")
    marker = data.index(b"Adobe")
    transform = marker + 11
    assert data[transform] in (0, 2)
    return data[:transform] + b"\2" + data[transform + 1 :]


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


def s15(value):
    return struct.pack(">i", round(value * 65536))


def xyz(values):
    return b"XYZ \0\0\0\0" + b"".join(map(s15, values))


def curve(gamma):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def matrix_profile(gamma, primaries):
    """A minimal ICC v2 display profile: RGB primaries (XYZ, D50) and one gamma."""
    names = (b"rXYZ", b"gXYZ", b"bXYZ")
    return profile(
        b"RGB ",
        *((name, xyz(primary)) for name, primary in zip(names, primaries, strict=True)),
        *((name, curve(gamma)) for name in (b"rTRC", b"gTRC", b"bTRC")),
    )


def profile(kind, *parts):
    """A minimal ICC v2 display profile of these tags, with D50 as its white."""
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(4 + 4 + 2 + 1 + 67)
    parts = [
        (b"desc", text + bytes(-len(text) % 4)), (b"wtpt", xyz((0.9642, 1, 0.8249))), *parts
    ]  # fmt: skip
    offset, table, body = 128 + 4 + 12 * len(parts), struct.pack(">I", len(parts)), b""
    for name, part in parts:
        table += name + struct.pack(">II", offset + len(body), len(part))
        body += part
    head = struct.pack(
        ">I4sI4s4s4s", offset + len(body), bytes(4), 0x02100000, b"mntr", kind, b"XYZ "
    )
    head += bytes(12) + b"acsp" + bytes(28) + s15(0.9642) + s15(1) + s15(0.8249)
    return head + bytes(128 - len(head)) + table + body


LINEAR_GREY = profile(b"GRAY", (b"kTRC", curve(1.0)))
ADOBE_LIKE = matrix_profile(
    2.2, [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)]
)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def png_chunk(name, body):
    size, check = struct.pack(">I", len(body)), struct.pack(">I", zlib.crc32(name + body))
    return size + name + body + check


def png_of(width, height, *, depth=8, kind=0, rows=b"", behind=b""):
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(rows)) + behind + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + body

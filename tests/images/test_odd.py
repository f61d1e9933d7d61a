"""BMPs, GIFs and PNMs of odd kinds: the right pixels, or the reason."""

import io
import struct
import zlib

import numpy as np
import pytest

from stae_cli import read_latent
from stae_cli.errors import InputError
from stae_cli.images.read import open_image, read_image
from tests.difficult import png_chunk, png_of
from tests.tiffs import tiff_of

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]])


def read(data, name=""):
    return open_image(io.BytesIO(data), name=name).pixels()


def bmp(depth, pixels, *, compression=0, size=40, masks=(), colours=b"", top_down=False):
    """Two rows of two pixels."""
    rows = [row.tobytes().ljust(-(-len(row.tobytes()) // 4) * 4, b"\0") for row in pixels]
    body = b"".join(rows if top_down else rows[::-1])
    head = struct.pack("<IiiHHIIiiII", size, 2, -2 if top_down else 2, 1, depth, compression,
                       len(body), 0, 0, len(colours) // 4, 0)  # fmt: skip
    head = (head + struct.pack(f"<{len(masks)}I", *masks)).ljust(size, b"\0") + colours
    return b"BM" + struct.pack("<IHHI", 14 + len(head + body), 0, 0, 14 + len(head)) + head + body


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize(
    ("depth", "masks"),
    [
        (16, (0x7C00, 0x3E0, 0x1F)),
        (16, (0xF800, 0x7E0, 0x1F)),
        (16, (0xF00, 0xF0, 0xF)),
        (16, (0x7C00, 0x3E0, 0x1F, 0x8000)),
        (32, (0xFF0000, 0xFF00, 0xFF)),
        (32, (0xFF, 0xFF00, 0xFF0000)),
        (32, (0x3FF00000, 0xFFC00, 0x3FF)),
        (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
    ],
)
def test_masks(depth, masks, top_down):
    alpha = np.array([[[255], [255]], [[0], [255]]])
    channels = np.dstack([COLOURS, alpha]) if len(masks) == 4 else COLOURS
    packed = sum(np.where(channels[..., n], mask, 0) for n, mask in enumerate(masks))
    data = bmp(depth, packed.astype(f"<u{depth // 8}"), compression=3, masks=masks,
               size=108 if len(masks) == 4 else 40, top_down=top_down)  # fmt: skip
    expected = np.where(alpha, COLOURS, 255) if len(masks) == 4 else COLOURS
    assert (read(data) == expected).all()


def test_alpha_that_is_left_out():
    for depth, masks in (
        (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
        (16, (0xF00, 0xF0, 15, 0xF000)),
    ):
        packed = sum(np.where(COLOURS[..., n], masks[n], 0) for n in range(3))
        pixels = packed.astype(f"<u{depth // 8}")
        assert (read(bmp(depth, pixels, compression=3, masks=masks, size=108)) == COLOURS).all()


@pytest.mark.parametrize("depth", [1, 4, 8])
@pytest.mark.parametrize("levels", [(0, 255), (255, 0), (0, 1), (0, 17), (3, 200)])
def test_palettes_of_two_greys(depth, levels):
    indices = np.array([[0, 1], [1, 1]])
    step = 8 - depth
    packed = indices if depth == 8 else (indices[:, :1] << step) | indices[:, 1:] << (step - depth)
    table = b"".join(bytes([level] * 3 + [0]) for level in levels)
    pixels = read(bmp(depth, packed.astype(np.uint8), colours=table))
    assert (pixels[..., 1] == np.array(levels)[indices]).all()


def test_a_palette_of_16_greys():
    table = b"".join(bytes([level] * 3 + [0]) for level in range(16))
    pixels = read(bmp(4, np.array([[0x1F], [0x07]], np.uint8), colours=table))
    assert pixels[..., 0].tolist() == [[1, 15], [0, 7]]


@pytest.mark.parametrize("depth", [0, 2, 64])
def test_bmps_that_cannot_be_read(depth):
    with pytest.raises(InputError, match="BMP of a kind"):
        read(bmp(depth, np.zeros((2, 4), np.uint8)))


def gif(left, top, indices, clear=None):
    """A canvas of 4x4 pixels, and a frame of four colours."""
    height, width = np.shape(indices)
    codes = "".join(f"{code:03b}"[::-1] for index in np.ravel(indices) for code in (4, index))
    data = int(codes[::-1], 2) | 5 << len(codes)
    data = data.to_bytes(len(codes) // 8 + 1, "little")
    control = b"" if clear is None else b"!\xf9\4\1\0\0" + bytes([clear, 0])
    return b"".join([
        b"GIF89a", struct.pack("<HHBBB", 4, 4, 0x81, 2, 0), COLOURS.astype(np.uint8).tobytes(),
        control, b",", struct.pack("<4HBB", left, top, width, height, 0, 2),
        bytes([len(data)]), data, b"\0;",
    ])  # fmt: skip


@pytest.mark.parametrize("clear", [None, 1])
def test_what_a_first_frame_leaves_empty_is_transparent(clear):
    frame = np.array([[0, 1], [2, 0]])
    colours = COLOURS.reshape(4, 3)[frame]
    colours[frame == clear] = 255
    expected = np.full((4, 4, 3), 255)
    expected[1:3, 2:] = colours
    assert (read(gif(2, 1, frame, clear)) == expected).all()
    image = open_image(io.BytesIO(gif(2, 1, frame, clear)))
    assert image.pixels((9, 8, 7))[0, 0].tolist() == [9, 8, 7]


@pytest.mark.parametrize("peak", [1, 7, 100, 254, 255, 1000, 4095, 65535])
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_pnms(kind, peak):
    levels = np.linspace(0, peak, 12).astype(int)
    levels = levels.reshape(2, 2, 3) if kind in (3, 6) else levels.reshape(2, 6, 1)
    if kind < 4:
        body = " ".join(map(str, levels.ravel())).encode()
    else:
        body = levels.astype(">u2" if peak > 255 else "u1").tobytes()
    pixels = read(b"P%d %d 2 %d\n" % (kind, levels.shape[1], peak) + body)
    assert np.abs(pixels - levels * 255 / peak).max() <= 1


def test_other_pnms_are_named(tmp_path):
    for head, reason in ((b"P7\nWIDTH 4\n", "PAM"), (b"PF 2 2 -1.0\n", "floating-point")):
        (tmp_path / "a.pnm").write_bytes(head)
        with pytest.raises(InputError, match=reason):
            read_image(tmp_path / "a.pnm")


def test_encoding_a_folder_of_odd_files(stae, tiny, tmp_path):
    """Sound files become latents of their pixels, others are listed with their kind."""
    photos, plain = tmp_path / "photos", tmp_path / "plain"
    photos.mkdir()
    plain.mkdir()
    levels = np.arange(256).reshape(16, 16)
    (photos / "white.tif").write_bytes(tiff_of(65535 - levels * 257, 16, 0, order=">"))
    (photos / "deep.tif").write_bytes(tiff_of(levels, 32))
    rows = b"".join(b"\0" + row.tobytes() for row in levels.astype(np.uint8))
    text = png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(2 << 20)))
    grey = png_of(16, 16, rows=rows)
    (photos / "text.png").write_bytes(grey[:33] + text + grey[33:])
    (photos / "hdr.png").write_bytes(
        grey[:33] + png_chunk(b"cICP", bytes((9, 16, 0, 1))) + grey[33:]
    )
    ran = stae("encode", photos, tmp_path / "latents", "--weights", tiny, "--json")
    assert ran.code == 3
    reasons = {entry["source"]: entry["reason"] for entry in ran.json["failures"]}
    assert reasons.keys() == {"deep.tif", "hdr.png"}
    assert "range is unknown" in reasons["deep.tif"]
    assert "HDR" in reasons["hdr.png"]
    (plain / "grey.png").write_bytes(grey)
    assert stae("encode", plain, tmp_path / "latents-of-plain", "--weights", tiny).code == 0
    expected, _ = read_latent(tmp_path / "latents-of-plain" / "grey.safetensors")
    for key in ("white", "text"):
        latent, _ = read_latent(tmp_path / "latents" / f"{key}.safetensors")
        assert np.array_equal(latent, expected)

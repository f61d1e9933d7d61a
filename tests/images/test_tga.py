"""TGAs with bits that are not alpha: the right pixels, or the reason."""

import io
import struct

import numpy as np
import pytest

from stae_cli.errors import InputError
from stae_cli.images.read import open_image

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [132, 66, 33]]])  # of 5 bits each
SHORTS = (COLOURS >> 3) @ [1 << 10, 1 << 5, 1]


def read(data):
    return open_image(io.BytesIO(data), name="a.tga").pixels()


def tga(body, depth, *, kind=2, alpha_bits=0, colour_map=(0, 0, 0), attributes=None):
    """Two rows of two pixels, from the top; `attributes`: type in an extension area."""
    head = struct.pack("<BBBHHBHHHHBB", 0, colour_map[0] > 0, kind, 0, *colour_map[:2], 0, 0, 2, 2,
                       depth, alpha_bits | 0x20)  # fmt: skip
    data = head + body
    if attributes is not None:
        data += bytes(494) + bytes([attributes])
        data += struct.pack("<II", len(head + body), 0) + b"TRUEVISION-XFILE.\0"
    return data


def bgra(alpha):
    return np.dstack([COLOURS[..., ::-1], np.full((2, 2), alpha)]).astype(np.uint8).tobytes()


@pytest.mark.parametrize("top", [0, 1])
@pytest.mark.parametrize(("depth", "alpha_bits"), [(16, 0), (15, 0), (16, 1), (15, 1)])
def test_16_bits(top, depth, alpha_bits):
    data = tga((SHORTS | top << 15).astype("<u2").tobytes(), depth, alpha_bits=alpha_bits)
    assert np.abs(read(data) - COLOURS).max() <= 1


def test_a_bit_that_is_not_alpha():
    mixed = (SHORTS | np.array([[0, 1], [1, 0]]) << 15).astype("<u2").tobytes()
    assert np.abs(read(tga(mixed, 16)) - COLOURS).max() <= 1
    assert np.abs(read(tga(mixed, 16, alpha_bits=1, attributes=2)) - COLOURS).max() <= 1
    with pytest.raises(InputError, match="16 bits with transparency"):
        read(tga(mixed, 16, alpha_bits=1))


@pytest.mark.parametrize(
    ("alpha_bits", "attributes", "alpha"),
    [(0, None, 255), (8, None, 51), (8, 0, 255), (8, 2, 255), (0, 3, 51), (8, 3, 51)],
)
def test_32_bits(alpha_bits, attributes, alpha):
    data = tga(bgra(51), 32, alpha_bits=alpha_bits, attributes=attributes)
    assert np.abs(read(data) - (COLOURS * alpha + 255 * (255 - alpha)) / 255).max() <= 1


def test_premultiplied():
    colours = COLOURS // 5
    body = np.dstack([colours[..., ::-1], np.full((2, 2), 51)]).astype(np.uint8).tobytes()
    data = tga(body, 32, alpha_bits=8, attributes=4)
    assert np.abs(read(data) - (colours + 204)).max() <= 1


@pytest.mark.parametrize("alpha_bits", [0, 8])
def test_palettes(alpha_bits):
    table = bgra(51)
    data = tga(table + bytes([0, 1, 2, 3]), 8, kind=1, colour_map=(4, 32, 0), alpha_bits=alpha_bits)
    alpha = 51 if alpha_bits else 255
    assert np.abs(read(data) - (COLOURS * alpha + 255 * (255 - alpha)) / 255).max() <= 1
    shorts = SHORTS.astype("<u2").tobytes() + bytes([0, 1, 2, 3])
    data = tga(shorts, 8, kind=1, colour_map=(4, 15, 0))
    assert np.abs(read(data) - COLOURS).max() <= 1


@pytest.mark.parametrize(
    "data",
    [
        tga(bytes(8), 16, kind=3),
        tga(bytes(16), 16, kind=1, colour_map=(4, 24, 0)),
        tga(bytes(16), 8, kind=1),
        tga(bytes(16), 8),
    ],
)
def test_kinds_that_cannot_be_read(data):
    with pytest.raises(InputError, match="TGA of a kind"):
        read(data)

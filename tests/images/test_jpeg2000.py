"""JPEG 2000 of every depth and with every colour space: the right pixels, or the reason."""

import base64
import io
import struct

import numpy as np
import pytest
from PIL import Image

from stae_cli.errors import InputError
from stae_cli.images.read import open_image
from tests.difficult import ADOBE_LIKE, LINEAR_GREY, SRGB, by_pillow, photo, saved, with_alpha
from tests.tiffs import file_of

# Codestreams of 4x2 pixels, `deep(components, bits)`, which Pillow cannot write; the last is lossy.
DEEP = {
    (3, 16): (
        "|4;u>051Rl000040000200000000000000400002000000000000R#J0S^HI4*>!HQUDA90003200aa80smY81VD"
        "iQWB?@q0Yh?SVRU6=AYyqSPjF>!N>D{dAa-SPb7^mGATlmBE;Rp;015yA0000!00IA#&-^e%3reGK;$JOJAMph{c"
        "(G!dKi~L}P!bbIrGF?NM#hle_>f2pl4<I9o3Tyr|Je"
    ),
    (3, 12): (
        "|4;u>051Rl000040000200000000000000400002000000000000RpF0Sf^E3jqQDQUDA90003200aa80smY81VC"
        "W_WB?@q0Yh?SVRU6=AYyqSPjF>!N>D{dAa-SPb7^mGATlmBE;Rp;015yA0000t00IA#&*U@<N~3V%UoB1_@dY@;-"
        "{2?`6Gx?gB6-*CiQnKP43cT;calM@-~ZV"
    ),
    (4, 10): (
        "|4;u>05Sjo000040000200000000000000400002000000000000apE0SN&C2>}5K0RjI~01N;C009611Oxy9|6B"
        "kBKv4f=03`qcLvm$dbY)~9VtF7>aAj^vP(?=|c4cyNX>V>IGA=bPH2;tQ3IG5A002h-0soWVuviDSd&z?D2p7$t^"
        "WU&w4nIN)mxh8LhE!+2->_H`lru4N<;v1mM*H8eSQhUYB8{1l3?Y#3|Je"
    ),
    (2, 16): (
        "|4;u>04x9i000040000200000000000000400002000000000000IvI0S^HI|55-900001000C800IA800cmQ|6~"
        "9q00BdCWnpw>WFTUBAWv{*Zc0!^M<8}(a&u{KZXhx)H7+#&kN^q*00000Gynnrli&D|cn7w7$%5|)7tNx~F?)2+-"
        "}sPt4nIN)mxh8Lhc!NEJX$aR*#"
    ),
    "lossy": (
        "|4;u>051Rl000040000200000000000000400002000000000000R#J0S^HI4*>!HQUDA90003200aa80RLP71ww"
        "!T|6~9q00BdCWnpw>WFTUBAWv{*Zc0!^M<8}(a&u{KZXhx)H7+#&kN^q*00000Pyhk{lh6DxNDD=^1@){c(C~9mo"
        "~HGxuyE(k{4huaUp>ho8&r4T?lL@kj$7Lvzt8+INCj)*f~7a|M=H2^7dH!}5LDm)*#"
    ),
}


def deep(components, bits):
    top = 2**bits - 1
    levels = np.array([[0, top, top - 1, top // 2], [top * 3 // 4, 1, top, top - 2]])
    return np.dstack([np.roll(levels, n, axis=1) for n in range(components)]) / top


def read(data):
    return open_image(io.BytesIO(data)).pixels()


def stream(image, depth=8, **options):
    """A lossless codestream, declared to be of a depth; its values are around the middle."""
    data = bytearray(saved(image, "JPEG2000", no_jp2=True, mct=0, **options))
    for n in range(len(image.getbands())):
        data[42 + 3 * n] = depth - 1
    return bytes(data)


def box(name, data):
    return struct.pack(">I", len(data) + 8) + name + data


def jp2(codestream, components, *parts, size=(50, 35), depth=8):
    head = struct.pack(">IIHBBBB", *size[::-1], components, depth - 1, 7, 0, 0)
    return b"".join([
        box(b"jP  ", b"\r\n\x87\n"), box(b"ftyp", b"jp2 \0\0\0\0jp2 "),
        box(b"jp2h", box(b"ihdr", head) + b"".join(parts)), box(b"jp2c", codestream),
    ])  # fmt: skip


def space(number):
    return box(b"colr", struct.pack(">BBBI", 1, 0, 0, number))


def profile(data):
    return box(b"colr", b"\2\0\0" + data)


def channels(*entries):
    return box(b"cdef", struct.pack(">H", len(entries)) + b"".join(
        struct.pack(">HHH", *entry) for entry in entries))  # fmt: skip


def palette(table):
    count = table.shape[1]
    plain = b"".join(struct.pack(">HBB", 0, 1, n) for n in range(count))
    head = struct.pack(">HB", len(table), count) + bytes([7] * count)
    return box(b"pclr", head + table.astype(np.uint8).tobytes()) + box(b"cmap", plain)


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("boxed", [False, True])
def test_white_stays_white_above_8_bits(kind, boxed):
    components, bits = (3, 16) if kind == "lossy" else kind
    data, values = base64.b85decode(DEEP[kind]), deep(components, bits)
    if boxed:
        data = jp2(data, components, space(17 if components == 2 else 16), size=(4, 2), depth=bits)
    if components in (2, 4):
        values = values[..., :-1] * values[..., -1:] + 1 - values[..., -1:]
    assert np.abs(read(data) - values * 255).max() <= 2


@pytest.mark.parametrize("depth", range(1, 8))
@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA"])
def test_white_is_255_below_8_bits(depth, mode):
    peak = 2**depth - 1
    levels = np.arange(8 * 4 * len(mode)).reshape(8, 4, -1) % (peak + 1)
    levels[..., -1] = levels[..., -1] if mode in ("L", "RGB") else peak
    stored = (levels + 128 - 2 ** (depth - 1)).astype(np.uint8)
    image = Image.fromarray(stored[..., 0] if mode == "L" else stored)
    colours = levels[..., :3] if "RGB" in mode else levels[..., :1]
    assert np.abs(read(stream(image, depth)) - colours * 255 / peak).max() <= 0.5


@pytest.mark.parametrize("bits", [9, 12, 16])
def test_deep_greys(bits):
    levels = np.arange(35 * 50).reshape(35, 50) * (2**bits - 1) // 1749
    image = Image.fromarray((levels + 2**15 - 2 ** (bits - 1)).astype(np.uint16))
    for data in (codestream := stream(image, bits), jp2(codestream, 1, space(17), depth=bits)):
        assert np.abs(read(data)[..., 0] - levels / (2**bits - 1) * 255).max() <= 1


def test_signed_numbers_are_around_the_middle():
    data = bytearray(stream(photo()))
    for n in range(3):
        data[42 + 3 * n] |= 0x80
    assert (read(bytes(data)) == np.asarray(photo())).all()


def test_profiles():
    plain = read(saved(photo(), "PNG", icc_profile=ADOBE_LIKE))
    assert (read(jp2(stream(photo()), 3, profile(ADOBE_LIKE))) == plain).all()
    assert (read(jp2(stream(photo()), 3, profile(SRGB))) == np.asarray(photo())).all()
    grey = photo().convert("L")
    plain = read(saved(grey, "PNG", icc_profile=LINEAR_GREY))
    assert (read(jp2(stream(grey), 1, profile(LINEAR_GREY))) == plain).all()


def test_spaces():
    ycc = photo().convert("YCbCr")
    data = jp2(stream(Image.fromarray(np.asarray(ycc))), 3, space(18))
    assert (read(data) == np.asarray(ycc.convert("RGB"))).all()
    cmyk = photo().convert("CMYK")
    data = jp2(stream(Image.frombytes("RGBA", cmyk.size, cmyk.tobytes())), 4, space(12))
    assert (read(data) == np.asarray(cmyk.convert("RGB"))).all()


COLOUR = ((0, 0, 1), (1, 0, 2), (2, 0, 3))


def test_transparency():
    image = with_alpha()
    pixels, alpha = np.asarray(image)[..., :3], np.asarray(image)[..., 3:] / 255
    expected = by_pillow(saved(image, "PNG")).astype(int)
    for parts in ([], [channels(*COLOUR, (3, 1, 0))]):
        assert (read(jp2(stream(image), 4, space(16), *parts)) == expected).all()
    other = channels(*COLOUR, (3, 0xFFFF, 0xFFFF))
    assert (read(jp2(stream(image), 4, space(16), other)) == pixels).all()
    dark = Image.fromarray(np.dstack([np.round(pixels * alpha), alpha * 255]).astype(np.uint8))
    multiplied = jp2(stream(dark), 4, space(16), channels(*COLOUR, (3, 2, 0)))
    assert np.abs(read(multiplied) - expected).max() <= 1


def test_palettes():
    table = np.arange(64).reshape(16, 4) * 4
    indices = np.arange(35 * 50).reshape(35, 50) % 16
    codestream = stream(Image.fromarray(indices.astype(np.uint8)))
    colours, alpha = table[indices][..., :3], table[indices][..., 3:] / 255
    assert (read(jp2(codestream, 1, space(16), palette(table[:, :3]))) == colours).all()
    clear = jp2(codestream, 1, space(16), palette(table), channels(*COLOUR, (3, 1, 0)))
    assert np.abs(read(clear) - (colours * alpha + 255 * (1 - alpha))).max() <= 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (jp2(stream(photo()), 3, space(14)), "colour space 14"),
        (jp2(stream(photo()), 3, space(17)), "3 channels in colour space 17"),
        (jp2(stream(photo()), 3, box(b"colr", b"\5\0\0")), "method 5"),
        (jp2(stream(photo(), 12), 3, space(18)), "colours that cannot be read"),
        (jp2(stream(with_alpha()), 4, profile(bytes(16) + b"CMYK")), "colours that cannot"),
        (jp2(stream(photo()), 3, space(16), channels((0, 0, 3), (1, 0, 2), (2, 0, 1))), "order"),
        (jp2(stream(photo().convert("L")), 1, space(16), box(b"pclr", b"\0\1\3\7\7\7abc")), "odd"),
        (jp2(stream(photo(), 20), 3, space(16)), "20-bit"),
    ],
)
def test_what_does_not_come_out_right_is_refused_with_its_kind(data, reason):
    with pytest.raises(InputError, match=reason) as caught:
        read(data)
    assert "damaged" not in caught.value.message


@pytest.mark.parametrize("planar", [1, 2])
def test_in_a_tiff(planar):
    image = photo(32, 32)
    parts = [image] if planar == 1 else list(image.split())
    tiles = [
        stream(part.crop((x, y, x + 16, y + 16)))
        for part in parts
        for y, x in ((0, 0), (0, 16), (16, 0), (16, 16))
    ]
    entries = {256: (4, 32), 257: (4, 32), 258: (3, [8] * 3), 259: (3, 34712), 262: (3, 2),
               277: (3, 3), 284: (3, planar), 322: (4, 16), 323: (4, 16)}  # fmt: skip
    assert (read(file_of([(entries, tiles)], tiled=True)) == np.asarray(image)).all()


def test_what_lacks_data_is_damaged():
    data = base64.b85decode(DEEP[3, 16])
    for length in (20, 60, 120):
        with pytest.raises(InputError, match=r"damaged|not an image"):
            read(data[:length])

"""AVIFs whose colours are given in numbers: the right pixels, or the reason."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, features

from stae_cli.errors import InputError
from stae_cli.images.read import open_image
from tests.difficult import ADOBE_LIKE, photo, saved
from tests.images.test_png import FROM_P3, linear, srgb

pytestmark = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")


def read(data):
    return open_image(io.BytesIO(data)).pixels()


def avif(primaries, transfer, image=None, **options):
    data = saved(image or photo(), "AVIF", quality=100, subsampling="4:4:4", **options)
    place = data.index(b"colrnclx") + 8
    return data[:place] + struct.pack(">HH", primaries, transfer) + data[place + 4 :]


@pytest.mark.parametrize("code", [(1, 13), (1, 1), (2, 2), (1, 6)])
def test_srgb(code):
    assert (
        read(avif(*code)) == read(saved(photo(), "AVIF", quality=100, subsampling="4:4:4"))
    ).all()


def test_other_colours_are_converted():
    values = read(avif(1, 13)) / 255
    assert np.abs(read(avif(12, 13)) - srgb(linear(values) @ FROM_P3.T)).max() <= 1.5
    assert np.abs(read(avif(1, 8)) - srgb(values)).max() <= 1.5


def test_transparency():
    flat = Image.new("RGBA", (16, 16), (128, 128, 128, 128))
    light = srgb(np.array(128 / 255))
    assert np.abs(read(avif(1, 8, flat)) - (light * 128 + 255 * 127) / 255).max() <= 2
    dark = Image.new("RGBA", (16, 16), (60, 90, 120, 100))
    for options in ({}, {"alpha_premultiplied": True}):
        pixels = read(saved(dark, "AVIF", quality=100, subsampling="4:4:4", **options))
        expected = np.array([60, 90, 120]) * 100 / 255 + 255 - 100
        assert np.abs(pixels - expected).max() <= 2


def test_a_profile_counts_more():
    plain = saved(photo(), "AVIF", quality=100, subsampling="4:4:4", icc_profile=ADOBE_LIKE)
    data = plain
    if (place := plain.find(b"colrnclx")) > 0:
        data = plain[: place + 8] + struct.pack(">HH", 9, 8) + plain[place + 12 :]
    assert (read(data) == read(plain)).all()


@pytest.mark.parametrize(("code", "reason"), [((9, 16), "PQ"), ((9, 18), "HLG"), ((99, 13), "99")])
def test_colours_that_do_not_fit_are_refused(code, reason):
    with pytest.raises(InputError, match=reason):
        read(avif(*code))


def test_a_part_is_refused():
    with pytest.raises(InputError, match="clap"):
        read(avif(1, 13).replace(b"colrnclx", b"clapnclx"))

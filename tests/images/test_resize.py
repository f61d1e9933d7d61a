"""Preparation: the sizes that were asked for, and sides that the patch divides."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stae_cli.errors import InputError, UsageError
from stae_cli.images.read import open_image
from stae_cli.images.resize import Prep, parse_background, parse_described, prepare
from tests.pictures import noise


def prepared(width, height, patch=8, **prep):
    file = io.BytesIO()
    Image.fromarray(noise(width, height)).save(file, "PNG")
    return prepare(open_image(file), Prep(**prep), patch=patch)


@pytest.mark.parametrize(
    ("prep", "size"),
    [
        ({}, (150, 100)),
        ({"short_side": 50}, (75, 50)),
        ({"short_side": 33}, (50, 33)),
        ({"short_side": 100}, (150, 100)),
        ({"short_side": 400}, (150, 100)),
        ({"short_side": 10**400}, (150, 100)),
        ({"max_pixels": 6000}, (95, 63)),
        ({"max_pixels": 15000}, (150, 100)),
        ({"max_pixels": 10**9}, (150, 100)),
        ({"max_pixels": 10**400}, (150, 100)),
        ({"short_side": 50, "max_pixels": 600}, (30, 20)),
        ({"square": 64}, (64, 64)),
        ({"square": 200}, (200, 200)),
    ],
)
def test_sizes(prep, size):
    result = prepared(150, 100, **prep)
    assert (result.width, result.height) == size
    assert (result.original_width, result.original_height) == (150, 100)


@given(
    width=st.integers(1, 60) | st.integers(500, 2000),
    height=st.integers(1, 60),
    short=st.none() | st.integers(1, 70),
    most=st.none() | st.integers(64, 4000),
    patch=st.sampled_from([1, 2, 8, 32]),
)
def test_shrinking_never_enlarges_and_padding_only_adds(width, height, short, most, patch):
    result = prepared(width, height, patch, short_side=short, max_pixels=most)
    assert 1 <= result.width <= width
    assert 1 <= result.height <= height
    assert most is None or result.width * result.height <= most
    rows, columns = result.pixels.shape[:2]
    assert rows % patch == columns % patch == 0
    assert (rows - result.height, columns - result.width) < (patch, patch)
    assert result.pixels.flags.c_contiguous
    inner = result.pixels[: result.height, : result.width]
    assert (result.pixels[:, result.width :] == result.pixels[:, [result.width - 1]]).all()
    assert (result.pixels[result.height :, : result.width] == inner[-1]).all()


def test_extreme_ratios_obey_the_most_pixels():
    assert prepared(20000, 3, max_pixels=64).pixels.shape == (8, 64, 3)


def test_unresized_pixels_are_untouched():
    assert np.array_equal(prepared(48, 32).pixels, noise(48, 32))


def test_resizing_is_pillows_bicubic():
    expected = Image.fromarray(noise(150, 100)).resize((72, 48), Image.Resampling.BICUBIC)
    assert np.array_equal(prepared(150, 100, short_side=48).pixels, np.asarray(expected))


def test_the_square_is_the_centre():
    expected = Image.fromarray(noise(150, 100)).resize(
        (64, 64), Image.Resampling.BICUBIC, box=(25, 0, 125, 100)
    )
    assert np.array_equal(prepared(150, 100, square=64).pixels, np.asarray(expected))


def test_cropping_keeps_the_centre():
    result = prepared(21, 30, edges="crop")
    assert (result.width, result.height) == (16, 24)
    assert np.array_equal(result.pixels, noise(21, 30)[3:27, 2:18])
    with pytest.raises(InputError, match="7x30 is smaller"):
        prepared(7, 30, edges="crop")


def test_edges_error_names_the_size():
    assert prepared(16, 8, edges="error").pixels.shape == (8, 16, 3)
    with pytest.raises(InputError, match="21x30"):
        prepared(21, 30, edges="error")


def test_description_is_canonical_and_holds_only_what_differs():
    assert Prep().describe() == "{}"
    prep = Prep(square=8, background=(255, 0, 16), edges="crop")
    assert prep.describe() == '{"background":"#ff0010","edges":"crop","square":8}'


@pytest.mark.parametrize(
    ("text", "colour"),
    [("white", (255, 255, 255)), ("#102030", (16, 32, 48)), ("#fff", (255, 255, 255))],
)
def test_backgrounds(text, colour):
    assert parse_background(text) == colour


@pytest.mark.parametrize("text", ["", "nocolour", "#12", "1,2,3"])
def test_unknown_backgrounds(text):
    with pytest.raises(UsageError):
        parse_background(text)


@pytest.mark.parametrize(
    "prep",
    [
        Prep(),
        Prep(edges="crop", square=8, background=(255, 0, 16)),
        Prep(short_side=512, max_pixels=10**6),
    ],
)
def test_a_description_can_be_read_back(prep):
    assert parse_described(prep.describe()) == prep


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", '{"edges":"bend"}', '{"edges":[]}', '{"zoom":2}', "{ }", "[" * 100_000]
    + [f'{{"background":{value}}}' for value in ('"nocolour"', "[]", "{}", "5", "null", "true")]
    + [
        f'{{"{name}":{value}}}'
        for name in ("short_side", "max_pixels", "square")
        for value in ("-1", "0", "true", "8.0", "8.5", "NaN", "Infinity", '"8"', "[8]", "{}")
    ]
    + ['{"square":10000000}', '{"short_side":8,"square":8}', '{"max_pixels":' + "9" * 5000 + "}"],
)
def test_an_unknown_description_is_refused(text):
    with pytest.raises(InputError, match="unknown preparation"):
        parse_described(text)


def adm_crop(pixels, side):
    """The crop by its definition, with numpy where that is exact."""
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    while min(width, height) // 2 >= side:
        width, height = width // 2, height // 2
        image = image.resize((width, height), resample=Image.Resampling.BOX)
    factor = side / min(width, height)
    size = round(width * factor), round(height * factor)
    array = np.array(image.resize(size, resample=Image.Resampling.BICUBIC))
    top, left = (size[1] - side) // 2, (size[0] - side) // 2
    return array[top:, left:][:side, :side]


@pytest.mark.parametrize(
    ("width", "height"), [(500, 375), (333, 1000), (64, 64), (127, 128), (128, 300), (40, 50)]
)
def test_the_crop_of_adm_to_the_pixel(width, height):
    result = prepared(width, height, adm_crop=64)
    assert (result.width, result.height) == (64, 64)
    assert np.array_equal(result.pixels, adm_crop(noise(width, height), 64))


def test_the_crop_of_adm_does_not_enlarge_without_end():
    with pytest.raises(InputError, match="too long and narrow"):
        prepared(3000, 1, adm_crop=1024)


@pytest.mark.parametrize("prep", [{}, {"edges": "crop"}, {"square": 20}, {"short_side": 19}])
def test_a_flip_is_mirrored_before_it_is_padded(prep):
    result = prepared(45, 35, **prep, flip=True)
    height, width = result.height, result.width
    mirrored = result.pixels[:height, :width][:, ::-1]
    assert np.array_equal(result.flipped[:height, :width], mirrored)
    assert result.flipped.shape == result.pixels.shape
    assert (result.flipped[height:] == result.flipped[height - 1]).all()
    assert (result.flipped[:, width:] == result.flipped[:, width - 1 : width]).all()
    assert prepared(45, 35, **prep).flipped is None


@pytest.mark.parametrize(
    "prep", [Prep(flip=True), Prep(adm_crop=256, flip=True), Prep(adm_crop=256), Prep()]
)
def test_a_described_preparation_is_read_back(prep):
    assert parse_described(prep.describe()) == prep


@pytest.mark.parametrize(
    "text",
    [
        '{"adm_crop":256,"square":256}',
        '{"adm_crop":0}',
        '{"adm_crop":true}',
        '{"adm_crop":99999}',
        '{"flip":1}',
        '{"flip":false}',
    ],
)
def test_an_impossible_preparation_is_refused(text):
    with pytest.raises(InputError, match="unknown preparation"):
        parse_described(text)

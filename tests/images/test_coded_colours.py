"""Colours by their numbers in H.273: the profile of each gives what the formulas say."""

import numpy as np
import pytest
from PIL import Image

from stae_cli.errors import InputError
from stae_cli.images.coded_colours import profile_of
from stae_cli.images.pillow import to_srgb
from tests.pictures import noise

# From linear colours of each kind to linear sRGB, as published.
P3 = [[1.22494, -0.22494, 0], [-0.04206, 1.04206, 0], [-0.01964, -0.07864, 1.09827]]
BT2020 = [
    [1.66049, -0.58764, -0.07285],
    [-0.12455, 1.13290, -0.00835],
    [-0.01815, -0.10058, 1.11873],
]
SAME = np.eye(3)


def in_srgb(pixels, matrix, power=None):
    values = pixels / 255
    curved = ((values + 0.055) / 1.055) ** 2.4
    linear = values**power if power else np.where(values <= 0.04045, values / 12.92, curved)
    mixed = np.clip(linear @ np.array(matrix).T, 0, 1)
    return 255 * np.where(mixed <= 0.0031308, 12.92 * mixed, 1.055 * mixed ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize(
    ("primaries", "transfer", "matrix", "power"),
    [
        (12, 13, P3, None),
        (9, 14, BT2020, None),
        (1, 4, SAME, 2.2),
        (2, 8, SAME, 1),
        (12, 4, P3, 2.2),
    ],
)
def test_profiles_give_what_the_formulas_say(primaries, transfer, matrix, power):
    pixels = noise(48, 32)
    image = Image.fromarray(pixels)
    image.info["icc_profile"] = profile_of(primaries, transfer)
    converted = np.asarray(to_srgb(image).apply(image)).astype(int)
    assert np.abs(converted - in_srgb(pixels, matrix, power)).max() < 1.5


@pytest.mark.parametrize("numbers", [(1, 13), (1, 1), (2, 2), (2, 6)])
def test_srgb_needs_none(numbers):
    assert not profile_of(*numbers)


@pytest.mark.parametrize("numbers", [(9, 16), (9, 18), (10, 13), (1, 9), (99, 13)])
def test_what_cannot_be_converted_is_refused(numbers):
    with pytest.raises(InputError, match="save it as sRGB"):
        profile_of(*numbers)

"""The comparison picture: three panels of equal size, nothing cropped, grey where equal."""

import numpy as np
import pytest

from stae_cli.images.comparison import (
    LABELS,
    MARGIN,
    WIDEST_PANEL,
    _font,
    comparison,
    panels_size,
)
from tests.pictures import noise


def panels_of(sheet):
    width = (sheet.shape[1] - 4 * MARGIN) // 3
    lefts = [MARGIN + index * (width + MARGIN) for index in range(3)]
    return [sheet[:-MARGIN, left : left + width] for left in lefts]


@pytest.mark.parametrize("size", [(768, 512), (300, 500), (8, 8), (1, 1), (2000, 16), (7, 900)])
def test_panels_show_the_whole_pictures(size):
    original = noise(*size)
    reconstruction = noise(*size, seed=1)
    sheet = comparison(original, reconstruction)
    panel = panels_of(sheet)[0]
    width = panel.shape[1]
    assert 256 <= width <= max(WIDEST_PANEL, size[0])
    assert all(_font(width).getlength(label) <= width for label in LABELS)
    factor = max(1, min(-(-256 // size[0]), 4096 // size[1]))
    if size[0] <= WIDEST_PANEL:
        shown = panel[-size[1] * factor :, : size[0] * factor]
        assert np.array_equal(shown[::factor, ::factor], original)
    assert 0.9 * panels_size(*size) < sheet.nbytes < 1.4 * panels_size(*size) + 600_000


def test_a_narrow_picture_takes_no_more_memory_than_a_photo():
    sheet = comparison(noise(1, 30000), noise(1, 30000, seed=1))
    assert sheet.nbytes < 100_000_000
    assert sheet.shape[0] > 30000


def test_the_difference_is_grey_where_equal_and_eightfold():
    original = np.full((300, 300, 3), 100, np.uint8)
    reconstruction = original.copy()
    reconstruction[:150] += 5
    reconstruction[:, 200:] = 0
    difference = panels_of(comparison(original, reconstruction))[2][-300:]
    assert (difference[200, 100] == 128).all()
    assert (difference[10, 10] == 128 + 40).all()
    assert (difference[10, 250] == 0).all()

"""The comparison picture: three panels of equal size, nothing cropped, grey where equal."""

import numpy as np
import pytest

from stae_cli.images.comparison import LABELS, MARGIN, WIDEST_PANEL, _font, comparison
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
    width = panels_of(sheet)[0].shape[1]
    assert 256 <= width <= max(WIDEST_PANEL, size[0])
    factor = width / size[0]
    height = max(1, round(size[1] * factor))
    if factor >= 1:
        first = panels_of(sheet)[0][-height :: int(factor), :: int(factor)]
        assert np.array_equal(first, original)
    assert all(_font(width).getlength(label) <= width for label in LABELS)


def test_the_difference_is_grey_where_equal_and_eightfold():
    original = np.full((300, 300, 3), 100, np.uint8)
    reconstruction = original.copy()
    reconstruction[:150] += 5
    reconstruction[:, 200:] = 0
    difference = panels_of(comparison(original, reconstruction))[2][-300:]
    assert (difference[200, 100] == 128).all()
    assert (difference[10, 10] == 128 + 40).all()
    assert (difference[10, 250] == 0).all()

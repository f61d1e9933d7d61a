"""The canvas of charts: where values are drawn, and an error that names the file."""

import math

import numpy as np
import pytest

from stae_cli.errors import StaeError
from stae_cli.images.drawing import SCALE, Axis, Canvas, Frame, Line

FRAME = Frame(20, 10, 120, 60)


def places_of(canvas, colour):
    """Rows and columns in points where a colour is."""
    pixels = np.asarray(canvas.image)
    found = np.argwhere((pixels == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(-1))
    return found / SCALE


@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_line_goes_through_its_points(logarithmic):
    ends = Axis(1, 100, (1, 10, 100), logarithmic)
    middle = 10 if logarithmic else 50.5
    canvas = Canvas(140, 80)
    canvas.plot(FRAME, ends, ends, [Line([(1, 1), (middle, 100), (100, 1)], "#ff0000")])
    rows, columns = places_of(canvas, "#ff0000").T
    assert (columns.min(), columns.max()) == pytest.approx((20, 120), abs=1)
    assert (rows.min(), rows.max()) == pytest.approx((10, 60), abs=1)
    assert columns[rows == rows.min()].mean() == pytest.approx(70, abs=1)


def test_points_at_infinity_are_omitted_and_single_ones_marked():
    axis = Axis(0, 10, (0, 10))
    canvas = Canvas(140, 80)
    points = [(5, 5), (10, math.inf), (0, math.nan)]
    canvas.plot(FRAME, axis, axis, [Line(points, "#ff0000", marked=True)])
    rows, columns = places_of(canvas, "#ff0000").T
    assert (rows.mean(), columns.mean()) == pytest.approx((35, 70), abs=1)
    assert np.ptp(columns) < 8


def test_an_axis_of_one_value_is_centred():
    assert Axis(3, 3, (3,)).share(3) == 0.5


def test_a_failure_to_write_names_the_file(tmp_path):
    with pytest.raises(StaeError, match=r"cannot write .*absent") as caught:
        Canvas(10, 10).save(tmp_path / "absent" / "chart.png", hint="try another")
    assert caught.value.hint == "try another"

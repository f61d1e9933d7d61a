"""The page as text: what it says, and that it is whole for any number of pictures."""

import math
import re

import pytest

from stae_cli.metrics import Score
from stae_cli.report.histogram import histogram
from stae_cli.report.page import Column, Photo, Report, render, shown

SAME = Score(0.0, math.inf, 1.0, 100)
NEAR = Score(0.004, 30.0, 0.9, 100)
FAR = Score(0.04, 20.0, None, 300)


def page(scores, names=("one",), **more):
    columns = [Column(name, f"{name}.png", "16 channels at 1/8", 13_243_539) for name in names]
    photos = [Photo(f"{n}.jpg", 10, 10, each) for n, each in enumerate(scores)]
    return render(Report(columns, photos, (("command", "stae roundtrip a b"),), **more))


def cells(text):
    rows = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)[1:]
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


def test_means_are_those_of_the_metrics():
    text = page([[NEAR], [FAR]])
    assert "<h1>Roundtrip of 2 pictures</h1>" in text
    assert cells(text) == [
        ["25.00 dB", "0.9000", "0.031000", "16 channels at 1/8", "13.2 M"]  # SSIM of the one
    ]


def test_identical_pictures_and_ties():
    text = page([[SAME, NEAR], [NEAR, NEAR], [FAR, NEAR]], names=("one", "two"))
    assert [row[3:5] for row in cells(text)] == [["in 1", "in 1"], ["in 1", "in 0"]]
    assert "identical (1 by one) have no PSNR" in text
    assert "identical" in cells(page([[SAME]]))[0][0]


def test_without_pictures():
    text = page([], failures=[("a.jpg", "broken")])
    assert cells(text)[0][:3] == ["-", "-", "-"]
    assert "1 of 1 inputs failed" in text
    assert 'class="plot"' not in text
    assert 'id="rows"' not in text
    assert "Roundtrip of 1 picture<" in page([[NEAR]])


def test_many_failures_are_cut_short():
    text = page([[NEAR]], failures=[(f"{n}.jpg", "broken") for n in range(1000)])
    assert "1000 of 1001 inputs failed" in text
    assert "and 800 more" in text


def test_scripts_and_licences_are_in_it():
    text = page([[NEAR]])
    assert "Dmytro Snisarenko" in text
    assert "Timmy Willison" in text
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text)
    assert "{{" not in text
    assert "{%" not in text


def test_what_no_page_can_hold_is_shown_as_escapes():
    assert shown("a\udcff\n\x1b.jpg") == "a\\udcff\\n\\x1b.jpg"
    assert shown("שלום \U0001f469‍\U0001f680") == "שלום \U0001f469‍\U0001f680"
    page([[NEAR]], failures=[("\udcff", "\udcff")]).encode()


def test_a_histogram_counts_all_and_has_round_ticks():
    plot = histogram("PSNR", "dB", [("a", [20.0, 25.1, 30.0]), ("b", [22.0, math.inf])], digits=2)
    assert [tick.text for tick in plot.ticks] == ["20", "22", "24", "26", "28", "30"]
    assert [tick.share for tick in plot.ticks] == [0, 20, 40, 60, 80, 100]
    assert [sum(row.heights) for row in plot.rows] == [300, 100]
    assert plot.rows[0].heights[0] == 100
    assert plot.rows[0].heights[-1] == 100
    assert plot.rows[0].mean == pytest.approx(plot.bins * (25.0333 - 20) / 10, abs=0.01)
    assert plot.rows[1].label == "PSNR of b: from 22.00 to 22.00, mean 22.00"


@pytest.mark.parametrize("value", [0.0, 0.91, 31.4159, -3.0, 1e6])
def test_a_histogram_of_one_value(value):
    plot = histogram("SSIM", "", [("a", [value])], digits=4)
    assert sum(plot.rows[0].heights) == 100
    assert 0 <= plot.rows[0].mean <= plot.bins
    assert len(plot.ticks) >= 2
    assert histogram("PSNR", "", [("a", [math.inf]), ("b", [])], digits=2) is None


def test_ends_that_rounding_leaves_inside_of_the_values():
    for hundredths in range(0, 10_000, 7):
        plot = histogram("PSNR", "", [("a", [hundredths / 100])], digits=2)
        assert sum(plot.rows[0].heights) == 100

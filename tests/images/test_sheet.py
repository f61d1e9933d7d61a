"""Sheets: cells, what fits, and labels that stay within their cells whatever their text."""

import numpy as np
import pytest
from PIL import Image

from stae_cli.images import sheet as sheets
from stae_cli.images.sheet import CONTACT_STYLE, GRID_STYLE, INK, LABEL_GAP, fitting
from tests.pictures import noise

PAPER = (250, 250, 250)
GAP, NARROWEST = CONTACT_STYLE.gap, CONTACT_STYLE.narrowest


def saved(tmp_path, *sizes):
    paths = [tmp_path / f"{number}.png" for number in range(len(sizes))]
    for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        Image.fromarray(noise(*size, seed=number)).save(path)
    return paths


def drawn(tmp_path, sizes, labels):
    return fitting(saved(tmp_path, *sizes), CONTACT_STYLE, longest_side=10_000).draw(labels)


def inked(pixels):
    """Where a labelled strip is not paper: the first and last column, and how many pixels."""
    marked = (pixels != PAPER).any(axis=2)
    columns = np.flatnonzero(marked.any(axis=0))
    return columns[0], columns[-1], marked.sum()


def test_pictures_stand_above_their_labels(tmp_path):
    sheet = drawn(tmp_path, [(200, 40), (200, 120)], ["one", "two"])
    strip = sheet.shape[0] - 120 - 2 * GAP
    assert sheet.shape[1] == 3 * GAP + 2 * 200
    assert (sheet[GAP + 80 : GAP + 120, GAP : GAP + 200] == noise(200, 40, seed=0)).all()
    assert (sheet[GAP : GAP + 120, 2 * GAP + 200 :][:, :200] == noise(200, 120, seed=1)).all()
    assert (sheet[: GAP + 80, : GAP + 200] == PAPER).all()
    for left in (GAP, 2 * GAP + 200):
        begin, end, count = inked(sheet[GAP + 120 : GAP + 120 + strip, left : left + 200])
        assert count > 50
        assert abs((begin + end) / 2 - 99.5) < 3  # in the middle


@pytest.mark.parametrize(
    "label", ["k" * 200, "\u05e9\u05dc\u05d5\u05dd" * 20, "W" * 30, "x" * 3000]
)
def test_long_labels_stay_in_their_cells(tmp_path, label):
    sheet = drawn(tmp_path, [(8, 4)] * 2, [label, label])
    assert sheet.shape[1] == 3 * GAP + 2 * NARROWEST
    strip = sheet[GAP + 4 :]
    begin, end, _ = inked(strip[:, : GAP + NARROWEST + GAP])
    assert begin >= GAP
    assert end < GAP + NARROWEST
    assert end - begin > NARROWEST * 0.8


def test_labels_differ_by_their_beginnings_and_ends(tmp_path):
    long = "a" * 100
    labels = [long, f"b{long}", f"{long}b", "caf\u00e9", "cafe\u0301", "cafe"]
    sheet = drawn(tmp_path, [(8, 4)] * 6, labels)
    height = (sheet.shape[0] - GAP) // 2
    cells = [
        sheet[GAP + row * height + 4 :][: height - GAP - 4, GAP + column * (GAP + NARROWEST) :]
        for row in range(2)
        for column in range(3)
    ]
    first, second, third, *cafes = (cell[:, :NARROWEST].tobytes() for cell in cells)
    assert len({first, second, third}) == 3
    assert len(set(cafes)) == 1  # an accent that the font lacks is left out


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<b> & \\n", "<b> & \\n"),
        ("a\nb\x1b[0m", "a\\nb\\x1b[0m"),
        ("x\u202ey", "x\\u202ey"),
        ("\u05d0", "\\u05d0"),
        ("\udc80", "\\udc80"),
        ("\uffff", "\\uffff"),
        ("\U0001f642", "\\U0001f642"),
        ("stra\u00dfe", "stra\\xdfe"),
        ("\u0301", "\\u0301"),
        ("", ""),
    ],
)
def test_what_the_font_lacks_is_escaped(tmp_path, text, shown):
    labels = [text, shown]
    one, other = (drawn(tmp_path, [(8, 4)], [label]) for label in labels)
    assert (one == other).all()


def test_large_pictures_are_shrunk_and_shapes_may_be_extreme(tmp_path):
    longest = CONTACT_STYLE.longest
    sheet = fitting(
        saved(tmp_path, (2 * longest, longest), (1, 5 * longest)), CONTACT_STYLE, longest_side=10**6
    )
    assert sheet.sizes == [(longest, longest // 2), (1, longest)]
    assert sheet.draw(["a", "b"]).shape[1] == 3 * GAP + 2 * longest


@pytest.mark.parametrize("style", [GRID_STYLE, CONTACT_STYLE])
def test_as_many_as_fit(tmp_path, monkeypatch, style):
    paths = saved(tmp_path, *[(50, 30)] * 12)
    whole = fitting(paths, style, longest_side=10_000)
    assert len(whole.paths) == 12
    height, width, _ = whole.draw(["x"] * 12).shape
    assert len(fitting(paths, style, longest_side=max(width, height) - 1).paths) in range(1, 12)
    monkeypatch.setattr(sheets, "MOST_PIXELS", height * width - 1)
    assert len(fitting(paths, style, longest_side=10_000).paths) in range(1, 12)
    monkeypatch.setattr(sheets, "MOST_PIXELS", 10)
    assert fitting(paths, style, longest_side=10_000).paths == []
    monkeypatch.undo()
    paths[5].write_bytes(paths[5].read_bytes()[:20])
    assert fitting(paths, style, longest_side=10_000).paths == paths[:5]


def test_the_ink_is_dark(tmp_path):
    sheet = drawn(tmp_path, [(200, 4)], ["MMMM"])
    darkest = sheet[GAP + 4 + LABEL_GAP :].reshape(-1, 3).min(axis=0)
    assert "#{:02x}{:02x}{:02x}".format(*darkest) == INK

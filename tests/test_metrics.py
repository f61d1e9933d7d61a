"""Scores against the formulas written out, and at the ends of the scale."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from stae_cli.metrics import STRIP_PIXELS, STRIP_ROWS, Score, compare, mean_psnr, overall, psnr


def noisy_pair(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width][..., None]
    picture = 128 + 90 * np.sin(rows / 9 + columns / 7 + np.arange(3))
    noise = generator.normal(0, 12, picture.shape)
    return picture.astype(np.uint8), (picture + noise).clip(0, 255).astype(np.uint8)


def flat(value: int, height: int = 24, width: int = 32) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def naive_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Every 11x11 window in turn, in float64."""
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps)[..., None] / taps.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for top in range(a.shape[0] - 10):
        for left in range(a.shape[1] - 10):
            x = a[top : top + 11, left : left + 11].astype(float)
            y = b[top : top + 11, left : left + 11].astype(float)
            mx, my = (window * x).sum((0, 1)), (window * y).sum((0, 1))
            vx, vy = (window * (x - mx) ** 2).sum((0, 1)), (window * (y - my) ** 2).sum((0, 1))
            covariance = (window * (x - mx) * (y - my)).sum((0, 1))
            values.append(
                (2 * mx * my + c1) * (2 * covariance + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
            )
    return float(np.mean(values))


def test_scores_equal_the_formulas_written_out() -> None:
    a, b = noisy_pair(27, 33)
    score = compare(a, b)
    mse = np.mean((a.astype(float) - b) ** 2) / 127.5**2
    assert score.mse == pytest.approx(mse, rel=1e-12)
    assert score.psnr == pytest.approx(10 * math.log10(4 / mse))
    assert score.psnr == pytest.approx(20 * math.log10(255 / math.sqrt(mse * 127.5**2)))
    assert score.ssim == pytest.approx(naive_ssim(a, b), abs=1e-12)
    assert score.pixels == 27 * 33


def test_bright_flat_pictures_cost_no_precision() -> None:
    a, b = flat(255), flat(255)
    b[::7, ::5] -= 1
    assert compare(a, b).ssim == pytest.approx(naive_ssim(a, b), abs=1e-12)


def test_strips_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = noisy_pair(3 * STRIP_ROWS + 17, 64)
    assert a[..., 0].size < STRIP_PIXELS
    whole = compare(a, b)
    monkeypatch.setattr("stae_cli.metrics.STRIP_PIXELS", 1)
    strips = compare(a, b)
    assert strips.mse == whole.mse
    assert strips.ssim == pytest.approx(whole.ssim, abs=1e-12)


def test_a_score_does_not_depend_on_the_order() -> None:
    a, b = noisy_pair(40, 56, seed=1)
    forth, back = compare(a, b), compare(b, a)
    assert forth.mse == back.mse
    assert forth.ssim == pytest.approx(back.ssim, abs=1e-12)


def test_ssim_is_the_mean_over_the_colours() -> None:
    a, b = noisy_pair(32, 48, seed=2)
    per_colour = [
        compare(*(np.repeat(picture[..., [colour]], 3, axis=2) for picture in (a, b))).ssim
        for colour in range(3)
    ]
    assert compare(a, b).ssim == pytest.approx(np.mean(per_colour), abs=1e-12)


def test_identical_pictures_have_no_finite_psnr() -> None:
    a, _ = noisy_pair(24, 32)
    score = compare(a, a.copy())
    assert (score.mse, score.psnr) == (0, math.inf)
    assert score.ssim == pytest.approx(1)
    assert json.dumps(score.as_json(), allow_nan=False)
    assert score.as_json()["psnr"] is None


def test_black_against_white_is_the_largest_error() -> None:
    score = compare(flat(0), flat(255))
    assert score.mse == pytest.approx(4)
    assert score.psnr == pytest.approx(0)
    assert score.ssim == pytest.approx(0, abs=1e-4)


def test_one_level_off_everywhere() -> None:
    score = compare(flat(100), flat(101))
    assert score.mse == pytest.approx(1 / 127.5**2)
    assert score.psnr == pytest.approx(20 * math.log10(255))


@pytest.mark.parametrize(("height", "width", "has_one"), [(11, 11, True), (10, 64, False)])
def test_ssim_needs_a_window_that_fits(height: int, width: int, has_one: bool) -> None:
    score = compare(flat(90, height, width), flat(91, height, width))
    assert (score.ssim is not None) == has_one
    assert score.mse > 0


def test_overall_pools_errors_by_pixels_and_averages_the_rest() -> None:
    small, large = Score(0.01, psnr(0.01), None, 100), Score(0.04, psnr(0.04), 0.9, 300)
    same = Score(0.0, math.inf, 1.0, 100)
    figures = overall([small, large, same])
    assert figures.mse == pytest.approx((0.01 * 100 + 0.04 * 300) / 500)
    assert figures.psnr == pytest.approx((small.psnr + large.psnr) / 2)
    assert figures.ssim == pytest.approx(0.95)
    assert (figures.pictures, figures.identical) == (3, 1)


def test_overall_of_identical_pictures_serialises() -> None:
    figures = overall([Score(0.0, math.inf, None, 64)])
    assert figures.as_json() == {
        "pictures": 1,
        "identical": 1,
        "mse": 0,
        "psnr": None,
        "ssim": None,
    }


@pytest.mark.parametrize(
    "other",
    [flat(0, 24, 31), flat(0).astype(np.float32), flat(0)[..., :1], flat(0)[:0]],
    ids=["size", "dtype", "channels", "empty"],
)
def test_what_cannot_be_compared_is_refused(other: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"sizes differ|uint8 pixels"):
        compare(flat(0), other)


def test_no_scores_have_no_figures() -> None:
    with pytest.raises(ValueError, match="no scores"):
        overall([])


def test_the_mean_psnr_is_of_what_differs() -> None:
    assert mean_psnr([30.0, math.inf, 20.0]) == 25
    assert mean_psnr([math.inf]) == math.inf

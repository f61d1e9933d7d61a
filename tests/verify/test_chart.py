"""The chart of statistics: a row for each channel, and a cell for each pair of them."""

import numpy as np
import pytest
from PIL import Image

from stae_cli import charts
from stae_cli.latents.moments import moments_of, statistics_of
from stae_cli.verify.chart import CONSTANT, DEVIATION, draw
from stae_cli.verify.stats import Surveyed
from tests.svg import cells_of, shapes_of, texts_of, width_of

SAME, OPPOSITE = charts.DIVERGING[-1], charts.DIVERGING[0]


def surveyed(latent, weights="photo-2"):
    statistics = statistics_of(moments_of(latent))
    return Surveyed(
        latents=1234,
        files=5,
        weights=weights,
        weights_sha256="db79717fe32b5678",
        statistics=statistics,
    )


def noisy(channels):
    generator = np.random.default_rng(channels)
    return generator.normal(size=(channels, 20, 30)).astype(np.float32)


@pytest.mark.parametrize("channels", [16, 32, 64])
def test_every_channel_and_every_pair_is_there(tmp_path, channels):
    path = tmp_path / "chart.svg"
    draw(surveyed(noisy(channels)), path)
    assert len(shapes_of(path, stroke=DEVIATION)) == channels
    assert len(cells_of(path)) == channels**2
    found = texts_of(path)
    assert f"{channels} channels of latents: values and correlations" in found
    about = next(text for text in found if text.startswith("1,234 latents"))
    assert "600 positions in 5 files, made with photo-2 (db79717fe32b); shift" in about
    last = channels - 1 if channels == 16 else channels - 4
    assert found.count(str(last)) >= 3  # labels of both panels, and of the heat map's columns


@pytest.mark.parametrize("channels", [16, 64])
def test_all_sizes_give_the_same_picture_size(tmp_path, channels):
    draw(surveyed(noisy(channels)), tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.size == (2400, 1404)


def test_colours_say_which_channels_go_together(tmp_path):
    latent = noisy(16)
    latent[1], latent[2] = latent[0], -latent[0]
    draw(surveyed(latent), tmp_path / "chart.svg")
    cells = np.reshape(cells_of(tmp_path / "chart.svg"), (16, 16))
    assert cells[0].tolist()[:3] == [SAME, SAME, OPPOSITE]
    assert (cells.diagonal() == SAME).all()
    assert (cells == cells.T).all()
    assert set(cells[0, 3:]).isdisjoint({SAME, OPPOSITE})


def test_bars_are_as_long_as_deviations_are_large(tmp_path):
    latent = noisy(16)
    latent[1] = 3 * latent[0]
    draw(surveyed(latent), tmp_path / "chart.svg")
    bars = shapes_of(tmp_path / "chart.svg", stroke=DEVIATION)
    assert width_of(bars[1]) == pytest.approx(3 * width_of(bars[0]), rel=1e-3)
    extremes = shapes_of(tmp_path / "chart.svg", stroke=charts.GREY)
    assert len(extremes) == 16
    share = width_of(bars[5]) / width_of(extremes[5])
    assert share == pytest.approx(latent[5].std() / np.abs(latent[5]).max(), rel=1e-2)


def test_constant_channels_are_grey_and_explained(tmp_path):
    latent = noisy(16)
    latent[4] = 2
    draw(surveyed(latent), tmp_path / "chart.svg")
    assert len(cells_of(tmp_path / "chart.svg")) == 15**2
    assert CONSTANT.strip() in " ".join(texts_of(tmp_path / "chart.svg"))
    draw(surveyed(noisy(16)), tmp_path / "other.svg")
    assert CONSTANT.strip() not in " ".join(texts_of(tmp_path / "other.svg"))


def test_latents_of_one_value_have_a_chart(tmp_path):
    draw(surveyed(np.zeros((16, 2, 2), np.float32)), tmp_path / "chart.svg")
    assert cells_of(tmp_path / "chart.svg") == []
    assert "scale" not in " ".join(texts_of(tmp_path / "chart.svg"))

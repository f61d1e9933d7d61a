"""The colours of latents: principal components with known axes, signs and deviations."""

import numpy as np
import pytest

from stae_cli.latents.moments import moments_of, statistics_of
from stae_cli.verify import colours
from stae_cli.verify.colours import REACH, coloured, components_of

ROWS, COLUMNS = 40, 30


def sources(count):
    """`count` uncorrelated signals (count, n) with mean 0 and deviation 1."""
    raw = np.random.default_rng(0).standard_normal((ROWS * COLUMNS, count))
    independent, _ = np.linalg.qr(raw - raw.mean(0))
    return independent.T * np.sqrt(ROWS * COLUMNS - 1)


def latent_of(values):
    return values.reshape(-1, ROWS, COLUMNS).astype(np.float32)


def drawn(latent):
    return coloured(latent, components_of(statistics_of(moments_of(latent)))).astype(int)


def expected(signals):
    """The colours (h, w, n) of signals with deviation 1."""
    return np.rint(127.5 + 127.5 * (signals / REACH).clip(-1, 1)).T.reshape(ROWS, COLUMNS, -1)


def test_the_strongest_component_is_red_then_green_then_blue():
    signals = sources(5)
    axes, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))  # columns
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), range(5)])
    mean = np.array([[3.0], [-1], [0], [20], [5]])
    latent = latent_of(axes @ (signals * [[1], [4], [0.5], [8], [2]]) + mean)
    found = drawn(latent)
    assert found.shape == (ROWS, COLUMNS, 3)
    assert np.abs(found - expected(signals[[3, 1, 4]])).max() <= 1
    assert found.min() == 0
    assert found.max() == 255


def test_the_largest_weight_is_positive():
    (signal, *_) = sources(1)
    for weights in ([0.5, -2, 1], [0.5, 2, -1]):
        red = drawn(latent_of(np.outer(weights, signal)))[:, :, 0]
        assert np.abs(red - expected(signal[None] * np.sign(weights[1]))[:, :, 0]).max() <= 1


def test_of_weights_that_are_as_large_the_first_is_positive():
    (signal, *_) = sources(1)
    for weights in ([1, -1], [-1, 1]):
        red = drawn(latent_of(np.outer(weights, signal)))[:, :, 0]
        assert np.abs(red - expected(signal[None] * weights[0])[:, :, 0]).max() <= 1


@pytest.mark.parametrize("channels", [1, 2])
def test_of_few_channels_the_other_colours_are_grey(channels):
    signals = sources(channels)
    found = drawn(latent_of(signals * np.array([[4.0], [1.0]])[:channels]))
    assert np.abs(found[:, :, :channels] - expected(signals)).max() <= 1
    assert (found[:, :, channels:] == 128).all()


def test_what_does_not_vary_is_grey():
    (signal, *_) = sources(1)
    latent = latent_of(np.stack([np.full_like(signal, 7), signal, 3 * signal]))
    found = drawn(latent)
    assert found[:, :, 0].std() > 30
    assert (found[:, :, 1:] == 128).all()
    assert (drawn(np.full((3, 4, 4), -2, np.float32)) == 128).all()


def test_extreme_values_are_drawn():
    latent = latent_of(sources(4) * 1e30)
    assert drawn(latent).std() > 30
    latent = np.zeros((16, 4, 4), np.float16)
    latent[:, 1, 2] = 65504
    assert (drawn(latent)[1, 2] == [255, 128, 128]).all()


def test_large_latents_are_drawn_in_slabs(monkeypatch):
    latent = latent_of(sources(4))
    components = components_of(statistics_of(moments_of(latent)))
    whole = coloured(latent, components)
    monkeypatch.setattr(colours, "SLAB", 7)
    assert (coloured(latent, components) == whole).all()

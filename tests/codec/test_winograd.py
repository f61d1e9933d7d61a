"""Winograd's convolution: torch's own, to rounding, at every size."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import conv2d

from stae_cli.codec.cpu.affine import Placement
from stae_cli.codec.cpu.parts import Parts
from stae_cli.codec.cpu.winograd import TILES_AT_ONCE, winograd

FLOAT32 = Placement(torch.device("cpu"), torch.float32)
FLOAT64 = Placement(torch.device("cpu"), torch.float64)
PARTS = Parts(TILES_AT_ONCE)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(hidden, kernel, bias):
    """(B, h, w, I) -> (B, h, w, O) by torch in float64."""
    rows = conv2d(hidden.double().permute(0, 3, 1, 2), kernel, bias, padding=1)
    return rows.permute(0, 2, 3, 1)


@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 21),
    width=st.integers(1, 21),
    at_once=st.sampled_from([1, 3, 8, 384]),
)
def test_every_size_and_every_cut_in_float64(batch, height, width, at_once):
    kernel, bias = drawn(6, 4, 3, 3), drawn(6, seed=1)
    hidden, grid = drawn(batch, height, width, 4, seed=2), drawn(batch, height, width, 6, seed=3)
    result = grid.clone()
    winograd(kernel, bias, FLOAT64, Parts(at_once, threaded=True)).add_to([result], [hidden])
    torch.testing.assert_close(result, grid + exact(hidden, kernel, bias), rtol=0, atol=1e-11)


def test_float32_rounds_hardly_more_than_torch():
    kernel, bias = drawn(512, 512, 3, 3) / 68, drawn(512, seed=1)
    hidden = drawn(1, 24, 24, 512, seed=2).float().relu()
    expected = exact(hidden, kernel, bias)
    result = torch.zeros(1, 24, 24, 512)
    winograd(kernel, bias, FLOAT32, PARTS).add_to([result], [hidden])
    plain = conv2d(hidden.permute(0, 3, 1, 2), kernel.float(), bias.float(), padding=1)
    error = (result - expected).abs().max()
    assert error < 2e-5
    assert error < 6 * (plain.permute(0, 2, 3, 1) - expected).abs().max()


def test_zeros_outside_and_nothing_else():
    """A kernel that looks up and left only meets the border's zeros."""
    kernel = torch.zeros(4, 4, 3, 3, dtype=torch.float64)
    kernel[:, :, 0, 0] = torch.eye(4)
    hidden = torch.ones(1, 9, 5, 4, dtype=torch.float64)
    result = torch.zeros(1, 9, 5, 4, dtype=torch.float64)
    winograd(kernel, torch.zeros(4, dtype=torch.float64), FLOAT64, PARTS).add_to([result], [hidden])
    expected = torch.ones(9, 5, dtype=torch.float64)
    expected[0], expected[:, 0] = 0, 0
    for channel in range(4):
        torch.testing.assert_close(result[0, ..., channel], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_odd_channels(channels):
    kernel, bias = drawn(2, channels, 3, 3), drawn(2)
    hidden = drawn(1, 6, 6, channels)
    result = torch.zeros(1, 6, 6, 2, dtype=torch.float64)
    winograd(kernel, bias, FLOAT64, PARTS).add_to([result], [hidden])
    torch.testing.assert_close(result, exact(hidden, kernel, bias), rtol=0, atol=1e-11)


@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 2), st.integers(1, 11), st.integers(1, 11)), min_size=1, max_size=5
    ),
    at_once=st.sampled_from([1, 5, 384]),
)
def test_grids_of_several_sizes_share_the_products(sizes, at_once):
    kernel, bias = drawn(6, 4, 3, 3), drawn(6, seed=1)
    hiddens = [drawn(*size, 4, seed=i) for i, size in enumerate(sizes)]
    results = [torch.zeros(*size, 6, dtype=torch.float64) for size in sizes]
    winograd(kernel, bias, FLOAT64, Parts(at_once, threaded=True)).add_to(results, hiddens)
    for result, hidden in zip(results, hiddens, strict=True):
        torch.testing.assert_close(result, exact(hidden, kernel, bias), rtol=0, atol=1e-11)

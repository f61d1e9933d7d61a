"""Inputs of a case: what each network takes, and more of it than a cache holds."""

from __future__ import annotations

import pytest
import torch

from stae_cli.benchmark import contenders as given
from stae_cli.benchmark.contenders import Inputs
from stae_cli.benchmark.report import Case

CPU = torch.device("cpu")


@pytest.fixture
def inputs(monkeypatch: pytest.MonkeyPatch) -> Inputs:
    monkeypatch.setattr(given, "MOST", 4)
    return Inputs(Case(32, 16, batch=2), device=CPU, dtype=torch.bfloat16)


def test_shapes_dtypes_and_ranges(inputs: Inputs) -> None:
    pixels, image, latent = inputs.pixels()[0], inputs.images()[0], inputs.latents(16, 8)[0]
    assert (pixels.shape, pixels.dtype) == ((2, 16, 32, 3), torch.uint8)
    assert pixels.max() > 250
    assert pixels.min() < 5
    assert (image.shape, image.dtype) == ((2, 3, 16, 32), torch.bfloat16)
    assert image.abs().max() <= 1
    assert image.min() < 0
    assert (latent.shape, latent.dtype) == ((2, 16, 2, 4), torch.bfloat16)


def test_buffers_differ_and_are_shared_by_those_who_take_the_same(inputs: Inputs) -> None:
    first, second, *_ = inputs.images()
    assert not torch.equal(first, second)
    assert inputs.images() is inputs.images()
    assert inputs.latents(4, 8)[0].shape[1] == 4


def test_there_are_more_buffers_than_a_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given, "CACHE_BYTES", 10_000)
    pictures = Inputs(Case(32, 32), device=CPU, dtype=torch.float32).pixels()
    assert sum(each.numel() for each in pictures) > 10_000
    large = Inputs(Case(256, 256), device=CPU, dtype=torch.float32).pixels()
    assert len(large) == given.FEWEST

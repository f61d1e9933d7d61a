"""Seeded weights repeat, and leave the caller's random numbers alone."""

from __future__ import annotations

import torch

from stae_cli.network.seeding import seeded


def test_the_same_seed_gives_the_same_numbers() -> None:
    with seeded(3):
        first = torch.rand(4)
    with seeded(3):
        second = torch.rand(4)
    with seeded(4):
        other = torch.rand(4)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_generator_goes_on_as_before() -> None:
    before = torch.random.get_rng_state()
    with seeded(3):
        torch.rand(4)
    assert torch.equal(torch.random.get_rng_state(), before)

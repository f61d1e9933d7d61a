"""The loop benchmark's parts: a real training step, and figures that follow from the times."""

import pytest
import torch

from stae_cli import PackedLatents
from stae_cli.benchmark.loop import LoopResult
from stae_cli.benchmark.report import Case, Spread
from stae_cli.benchmark.transformer import SIZES, Step, Transformer, TransformerSize, tokens_of

MITE = TransformerSize(16, 2, 2)


@pytest.mark.parametrize("name", SIZES)
def test_the_parameters_are_those_of_the_network(name):
    size = SIZES[name]
    with torch.device("meta"):
        network = Transformer(size, 64)
    matrices = sum(each.numel() for each in network.blocks.parameters() if each.ndim == 2)
    assert matrices == size.parameters


def test_a_step_trains(monkeypatch):
    monkeypatch.setitem(SIZES, "mite", MITE)
    monkeypatch.setattr("stae_cli.benchmark.transformer.LEARNING_RATE", 1e-2)
    latents = PackedLatents.pack([torch.full((16, 2, 4), 3.0)] * 4)
    step = Step("mite", device=torch.device("cpu"), dtype=torch.float32, channels=16, merge=2)
    state = torch.random.get_rng_state()
    losses = [float(step(latents)) for _ in range(60)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_neighbours_become_one_token():
    latent = torch.arange(2 * 4 * 6).view(2, 4, 6).float()
    tokens = tokens_of(PackedLatents.pack([latent, latent + 100]), 2)
    assert tokens.shape == (2, 6, 8)
    corner = latent[:, 2:4, 4:6]  # the last square: its four positions, each with both channels
    assert torch.equal(tokens[0, 5], corner.permute(1, 2, 0).flatten())
    assert torch.equal(tokens[1], tokens[0] + 100)


def result(cached, encoding):
    both = cached + encoding
    times = [Spread(value, value, value) for value in (cached, both, encoding, encoding / both)]
    return LoopResult(Case(512, 512), "base", 85_000_000, 1024, 3, *times, latent_bytes=131072)


def test_the_advice_follows_from_the_times():
    assert result(90, 10).caching_pays
    assert result(90, 10).parameters_where_it_pays == pytest.approx(85_000_000)
    assert not result(180, 10).caching_pays
    assert result(180, 10).parameters_where_it_pays == pytest.approx(42_500_000)

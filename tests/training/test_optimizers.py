"""Optimizers: which weights go where, and that their state makes a resumed run the same."""

import sys

import pytest
import torch

from stae_cli.errors import UsageError
from stae_cli.network.stupid_ae import StupidAE
from stae_cli.training.optimizers import Optimizer, split_for_muon
from stae_cli.training.recipe import Recipe
from tests.seeded import TINY, seeded_model


def test_muon_gets_the_hidden_matrices_of_the_network():
    with torch.device("meta"):
        model = StupidAE()
    hidden, others = split_for_muon(model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert len(hidden) + len(others) == len(names)
    assert {names[p].split(".")[-2] for p in hidden} == {
        *("conv_up", "conv_down", "0", "2", "param_gen")
    }
    left = sorted(names[p] for p in others if p.ndim > 1)
    assert left == [
        "decoder.0.conv_in.model.0.weight",
        "decoder.0.last.weight",
        "decoder.0.positions",
        "encoder.0.initial.0.weight",
        "encoder.0.out.model.2.weight",
    ]
    assert sum(p.numel() for p in hidden) > 0.98 * sum(p.numel() for p in names)


def stepped(model, optimizer, first, last, side=16):
    for step in range(first, last + 1):
        images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(step))
        (model(images) - images).square().mean().backward()
        optimizer.step(rate=1e-3, steps_done=step)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_restored_optimizer_goes_on_the_same_way(name, tmp_path):
    if name == "muon":
        pytest.importorskip("pytorch_optimizer")
    recipe = Recipe("pca", steps=100, optimizer=name, snoo=True)
    model = seeded_model(TINY).requires_grad_(True)
    optimizer = Optimizer(model, recipe)
    stepped(model, optimizer, 1, 30)  # past the first outer step, before the second
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")
    expected = stepped(model, optimizer, 31, 45)

    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    again = seeded_model(TINY, seed=9).requires_grad_(True)
    restored = Optimizer(again, recipe)
    again.load_state_dict(weights)
    restored.load_state_dict(state)
    assert torch.equal(stepped(again, restored, 31, 45), expected)


def test_muon_turns_a_convolution_by_an_orthogonal_matrix():
    """A 3x3 convolution is one (out, in * 9) matrix; its step has nearly equal singular values."""
    pytest.importorskip("pytorch_optimizer")
    model = seeded_model(TINY).requires_grad_(True)
    layer = model.decoder[0].blocks[0].mlp[2].weight
    before = layer.detach().clone()
    stepped(model, Optimizer(model, Recipe("pca", steps=9, optimizer="muon")), 1, 1, side=96)
    values = torch.linalg.svdvals((layer.detach() - before).flatten(1))
    assert values.max() < 2 * values.median()
    size = float((layer.detach() - before).square().mean().sqrt())
    assert 0.1e-3 < size < 0.3e-3  # of a rate of 1e-3, as AdamW's updates have


def test_without_its_library_muon_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(UsageError, match="not installed") as caught:
        Optimizer(seeded_model(TINY), Recipe("pca", steps=9, optimizer="muon"))
    assert "stae[train]" in caught.value.hint

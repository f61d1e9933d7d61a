"""Affine layers: packed or plain, the same function."""

import pytest
import torch
from torch.nn.functional import gelu

from stae_cli.model import affine
from stae_cli.model.affine import Placement, can_pack

CPU = torch.device("cpu")


@pytest.fixture(params=["packed", "plain"])
def place(request, monkeypatch):
    """Where layers are packed, and where they are not."""
    if request.param == "packed" and not can_pack():
        pytest.skip("this CPU's torch has no packed layers")
    monkeypatch.setattr(affine, "can_pack", lambda: request.param == "packed")
    return Placement(CPU, torch.float32)


@pytest.mark.parametrize("rows", [1, 7, 512, 600])
def test_every_form_of_the_layer(place, rows):
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(48, 32, generator=generator).double() / 6
    bias = torch.randn(48, generator=generator).double()
    x, other = (torch.randn(rows, n, generator=generator) for n in (32, 48))
    layer, expected = place.affine(weight, bias), x.double() @ weight.T + bias
    results = [
        (layer(x), expected),
        (layer.gelu(x, "none"), gelu(expected)),
        (layer.gelu(x, "tanh"), gelu(expected, approximate="tanh")),
        (layer.times(x, other), expected * other),
        (layer.plus(x, other), expected + other),
    ]
    for value, exact in results:
        torch.testing.assert_close(value.double(), exact, rtol=0, atol=1e-5)


def test_inputs_are_left_alone(place):
    layer = place.affine(torch.eye(16).double(), torch.zeros(16).double())
    x, other = torch.randn(9, 16), torch.randn(9, 16)
    before = x.clone(), other.clone()
    for run in (layer, lambda rows: layer.gelu(rows, "tanh")):
        run(x)
    layer.times(x, other)
    layer.plus(x, other)
    assert torch.equal(x, before[0])
    assert torch.equal(other, before[1])


def test_only_float32_on_the_cpu_is_packed():
    weight, bias = torch.eye(8).double(), torch.zeros(8).double()
    assert not Placement(CPU, torch.bfloat16).affine(weight, bias).packed
    assert not Placement(torch.device("meta"), torch.float32).affine(weight, bias).packed
    assert Placement(CPU, torch.float32).affine(weight, bias).packed == can_pack()


@pytest.mark.parametrize("flaw", ["other processor", "missing operator", "wrong result"])
def test_what_cannot_be_trusted_is_not_used(flaw, monkeypatch):
    if flaw == "other processor":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    elif flaw == "missing operator":
        monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", None, raising=False)
    else:
        monkeypatch.setattr(affine, "gelu", lambda rows, approximate: rows)
    assert not can_pack.__wrapped__()

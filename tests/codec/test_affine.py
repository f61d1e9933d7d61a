"""Affine layers: packed or plain, the same function."""

import pytest
import torch
from torch.nn.functional import gelu

from stae_cli.codec.cpu import affine
from stae_cli.codec.cpu.affine import Placement, can_pack

CPU = torch.device("cpu")


DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture(params=["packed", "packed, GELU behind", "plain"])
def place(request, dtype, monkeypatch):
    """Where layers are packed, with GELU inside or behind the product, and where they are not."""
    packed, behind = request.param != "plain", request.param.endswith("behind")
    if packed and not can_pack(dtype):
        pytest.skip("this CPU's torch has no packed layers")
    if behind and dtype != torch.float32:
        pytest.skip("for float32 alone")
    monkeypatch.setattr(affine, "can_pack", lambda _: packed)
    monkeypatch.setattr(affine, "slow_inside", lambda _: behind)
    return Placement(CPU, dtype)


@pytest.mark.parametrize("rows", [1, 7, 512, 600])
def test_every_form_of_the_layer(place, rows):
    generator = torch.Generator().manual_seed(rows)
    dtype = place.dtype
    weight = (torch.randn(48, 32, generator=generator) / 6).to(dtype).double()
    bias = torch.randn(48, generator=generator).to(dtype).double()
    x, other = (torch.randn(rows, n, generator=generator).to(dtype) for n in (32, 48))
    layer, expected = place.affine(weight, bias), x.double() @ weight.T + bias
    results = [
        (layer(x), expected),
        (layer.gelu(x, "none"), gelu(expected)),
        (layer.gelu(x, "tanh"), gelu(expected, approximate="tanh")),
        (layer.times(x, other), expected * other),
        (layer.plus(x, other), expected + other),
    ]
    for value, exact in results:
        assert value.dtype == dtype
        error = 1e-5 if dtype == torch.float32 else 0.05
        torch.testing.assert_close(value.double(), exact, rtol=error / 3, atol=error)


def test_inputs_are_left_alone(place):
    layer = place.affine(torch.eye(16).double(), torch.zeros(16).double())
    x, other = torch.randn(2, 9, 16).to(place.dtype)
    before = x.clone(), other.clone()
    for run in (layer, lambda rows: layer.gelu(rows, "tanh")):
        run(x)
    layer.times(x, other)
    layer.plus(x, other)
    assert torch.equal(x, before[0])
    assert torch.equal(other, before[1])


def test_float32_and_bfloat16_on_the_cpu_are_packed(dtype):
    weight, bias = torch.eye(8).double(), torch.zeros(8).double()
    assert Placement(CPU, dtype).affine(weight, bias).packed == can_pack(dtype)
    assert not Placement(torch.device("meta"), dtype).affine(weight, bias).packed
    assert not Placement(CPU, torch.float16).affine(weight, bias).packed


def test_bfloat16_needs_a_processor_that_multiplies_it(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not can_pack.__wrapped__(torch.bfloat16)


@pytest.mark.parametrize("flaw", ["other processor", "missing operator", "wrong result"])
def test_what_cannot_be_trusted_is_not_used(flaw, dtype, monkeypatch):
    if flaw == "other processor":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    elif flaw == "missing operator":
        monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", None, raising=False)
    else:
        monkeypatch.setattr(affine, "gelu", lambda rows, approximate: rows)
    assert not can_pack.__wrapped__(dtype)


def test_gelu_in_place_of_every_size():
    """Also of values whose cube is beyond float32."""
    values = torch.cat((torch.linspace(-12, 12, 8001), torch.tensor([-1e30, -1e13, 1e13, 1e30])))
    for approximate in ("none", "tanh"):
        exact = gelu(values.double(), approximate=approximate)
        found = affine.gelu_(values.clone()[:, None], approximate)[:, 0].double()
        torch.testing.assert_close(found, exact, rtol=2e-6, atol=1e-6)

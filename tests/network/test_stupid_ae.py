"""The reference network: against vectors computed in float64, and in half precision."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stae_cli.network.architecture import F8C16
from stae_cli.network.stupid_ae import CHANNEL_NORM_EPS, NeuralField, RMSNorm, StupidAE, seeded
from tests.seeded import seeded_model

GOLDEN = Path(__file__).parents[1] / "data" / "golden.safetensors"

LAYERS = """
encoder.0.initial.0
encoder.0.blocks.0.mlp.conv_up encoder.0.blocks.0.mlp.conv_down
encoder.0.blocks.1.mlp.conv_up encoder.0.blocks.1.mlp.conv_down
encoder.0.out.model.0 encoder.0.out.model.2
decoder.0.conv_in.model.0 decoder.0.conv_in.model.2
decoder.0.blocks.0.mlp.0 decoder.0.blocks.0.mlp.2
decoder.0.blocks.1.mlp.conv_up decoder.0.blocks.1.mlp.conv_down
decoder.0.blocks.2.mlp.0 decoder.0.blocks.2.mlp.2
decoder.0.blocks.3.mlp.conv_up decoder.0.blocks.3.mlp.conv_down
decoder.0.nerf.0.param_gen decoder.0.last
"""
NORMS = """
encoder.0.blocks.0.norm encoder.0.blocks.1.norm
decoder.0.blocks.0.norm decoder.0.blocks.1.norm decoder.0.blocks.2.norm decoder.0.blocks.3.norm
decoder.0.nerf.0.norm
"""


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def reference():
    return seeded_model()


def relative_error(value, expected):
    return (value - expected).square().mean().sqrt() / expected.std()


def test_parameters_and_names_are_the_published_ones():
    model = StupidAE()
    assert sum(p.numel() for p in model.encoder.parameters()) == 3_521_552
    assert sum(p.numel() for p in model.decoder.parameters()) == 9_721_987
    weights = {f"{name}.weight" for name in (LAYERS + NORMS).split()}
    biases = {f"{name}.bias" for name in LAYERS.split()}
    assert set(model.state_dict()) == weights | biases | {"decoder.0.positions"}


@pytest.mark.parametrize("case", ["0", "1", "2"])
def test_float32_reproduces_the_golden_vectors(golden, reference, case):
    image = golden[f"{case}.pixels"].permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        latents = reference.encode(image)[0]
        decoded = reference.decode(golden[f"{case}.latents"][None])[0]
    torch.testing.assert_close(latents, golden[f"{case}.latents"], rtol=0, atol=1e-4)
    torch.testing.assert_close(decoded, golden[f"{case}.image"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_within_rounding(golden, dtype):
    model = seeded_model().to(dtype)
    image = golden["1.pixels"].permute(2, 0, 1)[None].to(dtype) / 127.5 - 1
    with torch.no_grad():
        latents = model.encode(image)[0].float()
        decoded = model.decode(golden["1.latents"][None].to(dtype))[0].float()
    assert relative_error(latents, golden["1.latents"]) < 2 * torch.finfo(dtype).eps
    assert relative_error(decoded, golden["1.image"]) < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1e-4, 300.0, 900.0])
def test_norm_in_half_precision_neither_overflows_nor_divides_by_zero(dtype, size):
    norm = RMSNorm(512, dim=1, eps=CHANNEL_NORM_EPS).to(dtype)
    x = torch.full((1, 512, 2, 2), size, dtype=dtype)
    expected = x.double() / (x.double().square().mean(1, keepdim=True) + CHANNEL_NORM_EPS).sqrt()
    torch.testing.assert_close(norm(x).double(), expected, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 300.0])
def test_head_in_half_precision_survives_zero_and_large_columns(dtype, size):
    field = NeuralField(F8C16).to(dtype)
    with torch.no_grad():
        field.param_gen.weight.zero_()
        field.param_gen.bias.fill_(size)
        out = field(torch.zeros(3, 512, dtype=dtype), torch.randn(1, 64, 32).to(dtype))
    assert out.isfinite().all()


def test_large_activations_survive_half_precision_end_to_end():
    model = seeded_model()
    with torch.no_grad():
        model.encoder[0].initial[0].bias.add_(400)
        image = torch.rand(1, 3, 32, 32) * 2 - 1
        expected = model.encode(image)
        half = model.to(torch.float16).encode(image.half()).float()
    assert half.isfinite().all()
    assert (half - expected).square().mean().sqrt() < 0.25  # float16's spacing at 400


def test_gradients_reach_every_parameter():
    model = StupidAE()
    model(torch.rand(1, 3, 16, 16)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


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

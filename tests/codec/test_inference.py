"""The inference form: the reference's function, in every arrangement."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from stae_cli.codec.cpu import affine
from stae_cli.codec.cpu.affine import Placement
from stae_cli.codec.cpu.folding import PlainBackend
from stae_cli.codec.inference import InferenceForm
from tests.seeded import TINY, seeded_model

GOLDEN = Path(__file__).parents[1] / "data" / "golden.safetensors"
CPU = torch.device("cpu")


def plain_form(model, dtype=torch.float32):
    return InferenceForm(model, PlainBackend(Placement(CPU, dtype)))


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def form():
    return plain_form(seeded_model())


@pytest.fixture(scope="module")
def tiny():
    return seeded_model(TINY), plain_form(seeded_model(TINY))


def as_image(rows):
    """Patches (n, 192) one below another."""
    return rows.view(-1, 8, 3)


def as_grids(latents):
    """(C, h, w) -> a list of one (h, w, C)."""
    return [latents.permute(1, 2, 0)]


@pytest.mark.parametrize("case", ["0", "1", "2"])
def test_float32_reproduces_the_golden_vectors(golden, form, case):
    pixels, latents, image = (golden[f"{case}.{what}"] for what in ("pixels", "latents", "image"))
    encoded = form.encode([pixels]).T.view(latents.shape)
    torch.testing.assert_close(encoded, latents, rtol=0, atol=1e-5)
    decoded = form.decode(as_grids(latents))[0].permute(2, 0, 1)
    torch.testing.assert_close(decoded, image, rtol=0, atol=1e-4)


def test_without_packing_too(golden, monkeypatch):
    monkeypatch.setattr(affine, "can_pack", lambda _: False)
    plain = plain_form(seeded_model())
    decoded = plain.decode(as_grids(golden["1.latents"]))[0].permute(2, 0, 1)
    torch.testing.assert_close(decoded, golden["1.image"], rtol=0, atol=1e-4)


def test_bfloat16_stays_within_rounding(golden):
    half = plain_form(seeded_model(), torch.bfloat16)
    latents, image = golden["1.latents"], golden["1.image"]
    decoded = half.decode(as_grids(latents.bfloat16()))[0].permute(2, 0, 1).float()
    error = (decoded - image).square().mean().sqrt() / image.std()
    assert error < 3 * torch.finfo(torch.bfloat16).eps


@settings(max_examples=30)
@given(batch=st.integers(1, 3), height=st.integers(1, 14), width=st.integers(1, 14))
def test_decodes_any_size_like_the_reference(tiny, batch, height, width):
    model, form = tiny
    generator = torch.Generator().manual_seed(height * 100 + width)
    latents = torch.randn(batch, 16, height, width, generator=generator)
    with torch.no_grad():
        expected = model.decode(latents).permute(0, 2, 3, 1)
    grids = list(latents.permute(0, 2, 3, 1))
    decoded = form.decode(grids)
    torch.testing.assert_close(torch.stack(decoded), expected, rtol=0, atol=1e-4)
    levels, finite = form.decode_levels(grids)
    assert finite.tolist() == [True] * (batch * height * width)
    for image, pixels in zip(decoded, levels, strict=True):
        assert torch.equal(pixels, image.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8))


@settings(max_examples=30)
@given(sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=6))
def test_decodes_several_sizes_together_in_order(tiny, sizes):
    model, form = tiny
    generator = torch.Generator().manual_seed(len(sizes))
    latents = [torch.randn(16, *size, generator=generator) for size in sizes]
    decoded = form.decode([latent.permute(1, 2, 0) for latent in latents])
    for latent, image in zip(latents, decoded, strict=True):
        with torch.no_grad():
            expected = model.decode(latent[None])[0].permute(1, 2, 0)
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-4)


@settings(max_examples=30)
@given(counts=st.lists(st.integers(1, 700), min_size=1, max_size=6), floats=st.booleans())
def test_rows_do_not_depend_on_their_portions(tiny, counts, floats):
    _, form = tiny
    generator = torch.Generator().manual_seed(sum(counts))
    rows = torch.randint(0, 256, (sum(counts), 192), generator=generator, dtype=torch.uint8)
    rows = rows.float().div(127.5).sub(1) if floats else rows
    together = form.encode(map(as_image, rows.split(counts)))
    last = form.encode([as_image(rows[-1:])])
    assert torch.equal(together[-1:], last)
    assert torch.equal(together, form.encode([as_image(rows)]))


def test_what_is_not_finite_is_told_per_picture(tiny):
    _, form = tiny
    latents = torch.randn(3, 5, 5, 16, generator=torch.Generator().manual_seed(0))
    latents[1, 4, 4, 0] = torch.nan
    latents[2, 0, 0, 3] = torch.inf
    finite = form.decode_levels(list(latents))[1].view(3, 25)
    assert finite.all(1).tolist() == [True, False, False]


def test_the_models_weights_are_copied(tiny):
    model = seeded_model(TINY)
    form = plain_form(model)
    image = torch.zeros(16, 16, 3, dtype=torch.uint8)
    before = form.encode([image])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(form.encode([image]), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 300.0])
def test_the_head_in_half_precision_survives_zero_and_large_columns(dtype, size):
    model = seeded_model(TINY)
    with torch.no_grad():
        generator = model.decoder[0].nerf[0].param_gen
        generator.weight.zero_()
        generator.bias.fill_(size)
        model.decoder[0].last.weight.mul_(1e-3)
    form = plain_form(model, dtype)
    (image,) = form.decode([torch.zeros(2, 2, 16, dtype=dtype)])
    assert image.isfinite().all()


def test_large_activations_survive_half_precision():
    model = seeded_model(TINY)
    with torch.no_grad():
        model.encoder[0].initial[0].bias.add_(400)
    image = torch.randint(
        0, 256, (40, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    exact = plain_form(model).encode([image])
    half = plain_form(model, torch.float16).encode([image]).float()
    assert half.isfinite().all()
    assert (half - exact).square().mean().sqrt() < 0.25 * max(1.0, exact.std())

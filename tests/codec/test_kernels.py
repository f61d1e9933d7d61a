"""The CUDA kernels and the form made with them: on a card, else in Triton's interpreter.

The interpreter executes the same programs on the CPU, block by block. That they compile for real
cards is tried too; that they are fast only a card can show.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn.functional import gelu

pytest.importorskip("triton")

from stae_cli.codec import inference
from stae_cli.codec.cpu.affine import Affine, Placement
from stae_cli.codec.cpu.folding import PlainBackend
from stae_cli.codec.cpu.layers import FieldHead, normed
from stae_cli.codec.cuda import kernels
from stae_cli.codec.cuda.folding import FusedBackend
from stae_cli.codec.cuda.layers import FusedFieldHead, FusedTrunk, GegluStep, write_tanh_gelu
from stae_cli.codec.inference import InferenceForm
from stae_cli.codec.tensors import centred, patches_of
from stae_cli.network.architecture import PRESETS
from tests.codec.interpreted import DEVICE, SILENT_OVERFLOWS, SMALL
from tests.seeded import TINY, seeded_model, tiny_like

GOLDEN = Path(__file__).parents[1] / "data" / "golden.safetensors"
VARIANTS = [SMALL, *(tiny_like(PRESETS[name]) for name in ("f8c16-1x1", "f8c16-shuffle", "f32c64"))]
HALVES = [torch.float16, torch.bfloat16]

pytestmark = [*SILENT_OVERFLOWS, pytest.mark.usefixtures("with_tensor_cores")]


def fused(model, dtype=torch.float32):
    return InferenceForm(model, FusedBackend(Placement(DEVICE, dtype)))


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def drawn_bytes(*shape):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(DEVICE)


def golden_vectors(case):
    golden = load_file(GOLDEN, device=str(DEVICE))
    return [golden[f"{case}.{what}"] for what in ("pixels", "latents", "image")]


def reference(architecture):
    return seeded_model(architecture).to(DEVICE)


@pytest.fixture(scope="module")
def full():
    return seeded_model()


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("count", [1, 37])
@pytest.mark.parametrize("width", [48, 512])
def test_norms_take_the_deferred_bias_into_account(dtype, count, width):
    rows, product = drawn(count, width).to(dtype), drawn(count, width, seed=1).to(dtype)
    deferred = drawn(width, seed=2)
    close(kernels.normed(rows, deferred), normed(rows.float() + deferred))
    total = rows.float() + product.float()
    found = kernels.add_normed(rows, product, deferred)
    close(rows, total)  # which the interpreter does not round to nearest in bfloat16
    close(found, normed(rows.float() + deferred))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("hidden", [96, 1024])
def test_gates_multiply_what_they_gate(dtype, hidden):
    up = (drawn(37, 2 * hidden) * 3).to(dtype)
    gate, act = up.float().chunk(2, 1)
    close(kernels.geglu(up), gate * gelu(act, approximate="tanh"))


def test_norms_survive_zeros_and_squares_that_overflow():
    rows = torch.stack((torch.zeros(512), torch.full((512,), 60000.0))).to(DEVICE).half()
    found = kernels.normed(rows, torch.zeros(512, device=DEVICE))
    close(found, torch.stack((torch.zeros(512), torch.ones(512))).to(DEVICE))


def close(found, meant):
    """Within the rounding of what was found, of float32 at least."""
    eps = max(torch.finfo(found.dtype).eps, 1e-6)
    torch.testing.assert_close(found.float(), meant, rtol=2 * eps, atol=2 * eps * meant.std())


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_layers_write_where_they_are_told_to(dtype):
    layer = Affine(*(drawn(*shape).to(dtype) for shape in ((24, 16), (24,))))
    rows, result = drawn(5, 16, seed=1).to(dtype), drawn(9, 24).to(dtype)[2:7]
    write_tanh_gelu(layer, rows, result)
    torch.testing.assert_close(result, gelu(layer(rows), approximate="tanh"))


@pytest.mark.usefixtures("large_blocks")
@pytest.mark.parametrize("case", ["0", "1", "2"])
def test_float32_reproduces_the_golden_vectors(full, case):
    pixels, latents, image = golden_vectors(case)
    form = fused(full)
    assert isinstance(form._trunk, FusedTrunk)
    assert isinstance(form._head, FusedFieldHead)
    encoded = form.encode([pixels]).T.view(latents.shape)
    torch.testing.assert_close(encoded, latents, rtol=0, atol=1e-5)
    (decoded,) = form.decode([latents.permute(1, 2, 0)])
    torch.testing.assert_close(decoded.permute(2, 0, 1), image, rtol=0, atol=1e-4)
    (levels,), finite = form.decode_levels([latents.permute(1, 2, 0)])
    assert finite.all()
    assert torch.equal(levels, decoded.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8))


@pytest.mark.usefixtures("large_blocks")
def test_float16_is_no_worse_than_torchs_functions(full):
    pixels, latents, image = golden_vectors("1")

    def errors(form):
        encoded = form.encode([pixels]).T.reshape(latents.shape).float()
        (decoded,) = form.decode([latents.permute(1, 2, 0).half()])
        differences = encoded - latents, decoded.permute(2, 0, 1).float() - image
        return [difference.square().mean().sqrt() for difference in differences]

    encoding, decoding = errors(fused(full, torch.float16))
    plain = InferenceForm(full, PlainBackend(Placement(DEVICE, torch.float16)))
    plain_encoding, plain_decoding = errors(plain)
    assert encoding <= 1.1 * plain_encoding
    assert decoding <= 1.1 * plain_decoding


@pytest.mark.parametrize("architecture", VARIANTS, ids=lambda each: each.name)
def test_every_network_is_its_reference(architecture):
    model = reference(architecture)
    form = fused(model)
    assert any(isinstance(layer, GegluStep) for layer in form._encoder.layers)
    side = architecture.downsample
    pixels = drawn_bytes(2 * side, 3 * side, 3)
    with torch.no_grad():
        expected = model.encode(pixels.permute(2, 0, 1)[None] / 127.5 - 1)[0]
        encoded = form.encode([pixels])
        painted = model.decode(expected[None])[0]
    torch.testing.assert_close(encoded.T.view(expected.shape), expected, rtol=0, atol=1e-5)
    (decoded,) = form.decode([expected.permute(1, 2, 0)])
    torch.testing.assert_close(decoded.permute(2, 0, 1), painted, rtol=0, atol=1e-4)


@settings(max_examples=8)
@given(sizes=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4))
def test_sizes_mix(sizes):
    model = reference(SMALL)
    latents = [drawn(16, *size, seed=len(sizes)) for size in sizes]
    decoded = fused(model).decode([latent.permute(1, 2, 0) for latent in latents])
    for latent, image in zip(latents, decoded, strict=True):
        with torch.no_grad():
            expected = model.decode(latent[None])[0].permute(1, 2, 0)
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-4)


def test_rows_come_in_chunks(monkeypatch):
    monkeypatch.setitem(inference.ROWS, DEVICE.type, 64)
    model = reference(SMALL)
    form = fused(model)
    latent = drawn(16, 9, 11)
    with torch.no_grad():
        expected = model.decode(latent[None])[0].permute(1, 2, 0)
    (decoded,) = form.decode([latent.permute(1, 2, 0)])
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-4)
    image = drawn_bytes(80, 80, 3)
    assert torch.equal(form.encode([image])[70:71], form.encode([image[56:64, :8]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_heads_are_painted_as_torch_does_it(dtype):
    made = drawn(36, 32 * 32 + 3 * 32).to(dtype)
    encoded, constant = drawn(64, 32, seed=1).to(dtype), drawn(3, 64, seed=2).to(dtype)
    identity = torch.eye(made.shape[1], device=DEVICE)
    generator = Affine(identity, identity.new_zeros(made.shape[1]))
    plain = FieldHead(generator, encoded.float(), constant.float()).painted(made.float()).mT
    eps = max(torch.finfo(dtype).eps, 1e-6)
    for parts in ((slice(0, 36),), (slice(0, 7), slice(7, 36))):
        canvas = made.new_empty(6 * 8, 6 * 8, 3)
        levels = torch.empty_like(canvas, dtype=torch.uint8)
        finite = kernels.empty_finite(made, encoded)
        for part in parts:
            given = made[part], encoded, constant
            for target in (canvas, levels):
                kernels.paint(*given, target.view(-1), finite[part], across=6, first=part.start)
        found = patches_of(canvas, 8).unflatten(1, (-1, 3))
        assert finite.all()
        bound = 4 * eps * (plain.std() + plain.abs())
        assert ((found.float() - plain).abs() <= bound).all()
        exact = plain.add(1).mul(127.5).clamp(0, 255)
        near = (patches_of(levels, 8).unflatten(1, (-1, 3)).float() - exact).abs()
        assert (near <= 0.5 + 127.5 * bound).all()


def painted(made, encoded, constant, *, dtype=torch.float32, across=1):
    """Patches (N, P, 3) of one image, and whether each is finite."""
    canvas = made.new_empty(len(made) // across * 8, across * 8, 3, dtype=dtype)
    finite = kernels.empty_finite(made, encoded)
    kernels.paint(made, encoded, constant, canvas.view(-1), finite, across=across, first=0)
    return patches_of(canvas, 8).unflatten(1, (-1, 3)), finite.all(1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [5, 32 * 32 + 5], ids=["first matrix", "second matrix"])
def test_what_is_not_finite_stays_in_its_patch(value, place):
    made, encoded, constant = drawn(11, 32 * 32 + 3 * 32), drawn(64, 32), drawn(3, 64)
    sound, all_finite = painted(made, encoded, constant)
    assert all_finite.all()
    made[6, place] = value
    pixels, finite = painted(made, encoded, constant)
    others = torch.arange(11, device=DEVICE) != 6
    assert finite.tolist() == others.tolist()
    assert torch.equal(pixels[others], sound[others])


def test_zero_columns_are_no_division_by_zero():
    made = torch.zeros(3, 16 * 16 + 3 * 16, device=DEVICE)
    pixels, finite = painted(made, drawn(64, 16), drawn(3, 64))
    assert finite.all()
    assert torch.equal(pixels[0], drawn(3, 64).T)


def test_levels_round_to_even_and_stop_at_the_ends():
    """Through the constant alone: each of a patch's pixels another value."""
    values = torch.cat((torch.arange(0, 30) + 0.5, torch.tensor([-70.0, 254.5, 255.5, 400.0])))
    values = torch.cat((values, torch.zeros(64 - len(values)))).div(127.5).sub(1)
    constant = values.expand(3, 64).contiguous().to(DEVICE)
    made = torch.zeros(5, 16 * 16 + 3 * 16, device=DEVICE)
    levels, _ = painted(made, drawn(64, 16), constant, dtype=torch.uint8)
    expected = values.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(levels[4, :, 1].cpu(), expected)


def test_patches_lie_where_the_image_has_them():
    made, encoded, constant = drawn(12, 16 * 16 + 3 * 16), drawn(64, 16), drawn(3, 64)
    column, _ = painted(made, encoded, constant)
    for across in (2, 3, 12):
        assert torch.equal(painted(made, encoded, constant, across=across)[0], column)


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("kind", ["bytes", "rows", "planes", "a part"])
def test_images_are_cut_as_they_lie(size, kind):
    images = drawn_bytes(4, 3 * size, 5 * size, 3)[::2]
    if kind != "bytes":
        images = images.float() / 127.5 - 1
    if kind == "planes":
        images = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    if kind == "a part":
        images = images[:, size:, size : 4 * size]
    expected = [centred(torch.float32, patches_of(image, size)) for image in images]
    for image, patches in zip(images, expected, strict=True):
        torch.testing.assert_close(kernels.cut(image, size, torch.float32), patches)
    torch.testing.assert_close(kernels.cut(images, size, torch.float32), torch.cat(expected))
    torch.testing.assert_close(
        centred(torch.float32, patches_of(images, size)), torch.cat(expected)
    )


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_pixels_are_centred_exactly(dtype):
    pixels = torch.arange(256, dtype=torch.uint8, device=DEVICE).repeat(3).view(16, 16, 3)
    meant = (patches_of(pixels, 8).double() - 128) / 128
    exact = kernels.cut(pixels, 8, dtype)
    assert exact.dtype == dtype
    assert torch.equal(exact.double(), meant)
    floats = kernels.cut(pixels.float() / 127.5 - 1, 8, torch.float32)
    torch.testing.assert_close(floats.double(), meant, rtol=0, atol=1e-6)


def test_widths_that_no_tensor_core_takes_are_painted_by_torch():
    assert kernels.can_paint(32, 64)
    assert kernels.can_paint(16, 1024)
    assert not kernels.can_paint(8, 64)
    assert not kernels.can_paint(48, 64)
    assert not kernels.can_paint(32, 16)
    assert type(fused(seeded_model(TINY))._head) is FieldHead


COMPILE = Path(__file__).with_name("compiling.py")
CAPABILITIES = ["80", "90", "120"]


def test_they_compile_for_real_cards_and_keep_their_numbers_in_registers():
    """By Triton's own assembler, which needs no card."""
    command = [sys.executable, COMPILE, *CAPABILITIES]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    for capability in CAPABILITIES:
        lines = [line for line in ran.stdout.splitlines() if line.startswith(f"{capability} ")]
        assert len(lines) == 7
        assert all(line.endswith(" 0 spilled") for line in lines), ran.stdout

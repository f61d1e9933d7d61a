"""The CUDA kernels and the form made with them: on a card, else in Triton's interpreter.

The interpreter executes the same programs on the CPU, block by block. That they compile for real
cards is tried too; that they are fast only a card can show.
"""

import os
import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn.functional import gelu

pytest.importorskip("triton")

from stae_cli.codec import inference
from stae_cli.codec.arithmetic import plain_arithmetic
from stae_cli.codec.cpu import folding
from stae_cli.codec.cpu.affine import Affine
from stae_cli.codec.cpu.layers import FieldHead, centred, patches_of
from stae_cli.codec.cuda import kernels
from stae_cli.codec.cuda import layers as fused_layers
from stae_cli.codec.cuda import selftest as trial
from stae_cli.codec.cuda.layers import FusedFieldHead, FusedTrunk, GegluStep, write_tanh_gelu
from stae_cli.codec.inference import InferenceForm
from stae_cli.network.architecture import PRESETS, Architecture
from tests.seeded import TINY, seeded_model, tiny_like

GOLDEN = Path(__file__).parents[1] / "data" / "golden.safetensors"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = Architecture("small", width=48, head_width=16)  # no power of two, as a kernel's blocks are
VARIANTS = [SMALL, *(tiny_like(PRESETS[name]) for name in ("f8c16-1x1", "f8c16-shuffle", "f32c64"))]
HALVES = [torch.float16, torch.bfloat16]

pytestmark = [
    # Overflows that a device meets in silence, numpy tells of.
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def _with_tensor_cores(monkeypatch):
    """As on a card, and for float32 too, which shows errors that half precision hides."""

    def has_tensor_cores(device, dtype):
        return device.type == "cuda" or dtype != torch.bfloat16  # the interpreter cannot multiply

    monkeypatch.setattr(trial, "has_tensor_cores", has_tensor_cores)
    monkeypatch.setattr(folding, "has_tensor_cores", has_tensor_cores)
    trial.why_unfused.cache_clear()
    with plain_arithmetic(DEVICE):
        yield


def fused(model, dtype=torch.float32):
    return InferenceForm(model, device=DEVICE, dtype=dtype, fused=True)


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


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_the_trial_passes_kernels_that_compute_what_they_say(dtype):
    assert trial.why_unfused(DEVICE, dtype) is None


@pytest.mark.parametrize("name", ["centred", "cut", "normed", "add_normed", "geglu", "paint"])
def test_the_trial_finds_what_computes_something_else(name, monkeypatch):
    real = getattr(kernels, name)

    def slightly_wrong(*given, **named):
        result = real(*given, **named)
        if name == "paint":
            given[3][2] += 1 if given[3].dtype == torch.uint8 else 0.05
        else:
            result[2, 5] += 0.05
        return result

    monkeypatch.setattr(kernels, name, slightly_wrong)
    assert name in trial.why_unfused(DEVICE, torch.float16)


def test_a_patch_that_spoils_its_neighbours_would_be_found(monkeypatch):
    real = kernels.paint

    def careless(*given, **named):
        real(*given, **named)
        given[4].zero_()  # finite

    monkeypatch.setattr(kernels, "paint", careless)
    assert "paint" in trial.why_unfused(DEVICE, torch.float16)


def test_a_compiler_that_fails_is_a_reason_not_an_error(monkeypatch):
    def fail(*_given):
        raise RuntimeError("Failed to find C compiler.\nPlease specify one")

    monkeypatch.setattr(kernels, "normed", fail)
    reason = trial.why_unfused(DEVICE, torch.float16)
    assert reason == "Triton does not work here (Failed to find C compiler.)"


@pytest.mark.parametrize(
    ("there", "words"), [(False, "Python.h` is missing"), (True, "gcc")], ids=["none", "some"]
)
def test_headers_that_a_compiler_lacks_are_named(monkeypatch, tmp_path, there, words):
    def fail(*_given):
        raise subprocess.CalledProcessError(1, ["gcc", "main.c"])

    if there:
        (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_config_var", {"INCLUDEPY": tmp_path}.get)
    monkeypatch.setattr(kernels, "normed", fail)
    assert words in trial.why_unfused(DEVICE, torch.float16)


def test_memory_that_ends_is_no_reason_to_do_without(monkeypatch):
    def fail(*_given):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(kernels, "normed", fail)
    with pytest.raises(torch.OutOfMemoryError):
        trial.why_unfused(DEVICE, torch.float16)
    monkeypatch.undo()
    assert trial.why_unfused(DEVICE, torch.float16) is None


def coarse_tanh_gelu(values):
    """By a tanh as coarse as that of a card's own instruction."""
    wide = values.double()
    tanh = torch.tanh(0.7978845608 * (wide + 0.044715 * wide**3))
    return wide * (1 + tanh * (1 + 2**-11 * torch.sin(1000 * wide))) / 2


@pytest.mark.parametrize(
    ("function", "dtypes"),
    [
        pytest.param(partial(gelu, approximate="tanh"), {torch.float32, *HALVES}, id="tanh"),
        pytest.param(coarse_tanh_gelu, {*HALVES}, id="coarse"),
        pytest.param(gelu, {}, id="exact"),
        pytest.param(torch.relu, {}, id="relu"),
        pytest.param(lambda values: gelu(values, approximate="tanh") * 1.1, {}, id="wrong"),
    ],
)
def test_a_products_own_gelu_is_used_where_it_is_the_approximation(monkeypatch, function, dtypes):
    def product(bias, rows, weight, *, use_gelu, out=None):
        return function((bias + rows @ weight).float()).to(rows.dtype)

    monkeypatch.setattr(torch, "_addmm_activation", product)
    for dtype in (torch.float32, *HALVES):
        trial.has_gelu_epilogue.cache_clear()
        assert trial.has_gelu_epilogue(DEVICE, dtype) == (dtype in dtypes)
    trial.has_gelu_epilogue.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_without_it_the_approximation_is_made_in_place(monkeypatch, dtype):
    monkeypatch.setattr(fused_layers, "has_gelu_epilogue", lambda *_: False)
    layer = Affine(*(drawn(*shape).to(dtype) for shape in ((24, 16), (24,))))
    rows, result = drawn(5, 16, seed=1).to(dtype), drawn(9, 24).to(dtype)[2:7]
    write_tanh_gelu(layer, rows, result)
    torch.testing.assert_close(result, gelu(layer(rows), approximate="tanh"))


def test_triton_can_be_left_out(monkeypatch):
    monkeypatch.setenv("STAE_TRITON", "0")
    assert trial.why_unfused(DEVICE, torch.float16) == "STAE_TRITON=0"


@pytest.mark.parametrize("case", ["0", "1", "2"])
def test_float32_reproduces_the_golden_vectors(case):
    pixels, latents, image = golden_vectors(case)
    form = fused(seeded_model())
    assert isinstance(form._trunk, FusedTrunk)
    assert isinstance(form._head, FusedFieldHead)
    encoded = form.encode([pixels]).T.view(latents.shape)
    torch.testing.assert_close(encoded, latents, rtol=0, atol=1e-5)
    (decoded,) = form.decode([latents.permute(1, 2, 0)])
    torch.testing.assert_close(decoded.permute(2, 0, 1), image, rtol=0, atol=1e-4)
    (levels,), finite = form.decode_levels([latents.permute(1, 2, 0)])
    assert finite.all()
    assert torch.equal(levels, decoded.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8))


def test_float16_is_no_worse_than_torchs_functions():
    pixels, latents, image = golden_vectors("1")
    model = seeded_model()
    errors = []
    for form in (
        fused(model, torch.float16),
        InferenceForm(model, device=DEVICE, dtype=torch.float16),
    ):
        encoded = form.encode([pixels]).T.reshape(latents.shape).float()
        (decoded,) = form.decode([latents.permute(1, 2, 0).half()])
        errors.append(
            [
                (encoded - latents).square().mean().sqrt(),
                (decoded.permute(2, 0, 1).float() - image).square().mean().sqrt(),
            ]
        )
    (encoding, decoding), (plain_encoding, plain_decoding) = errors
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


def painted(made, encoded, constant, *, dtype=torch.float32, across=1):
    """Patches (N, P, 3) of one image, and whether each is finite."""
    canvas = made.new_empty(len(made) // across * 8, across * 8, 3, dtype=dtype)
    finite = kernels.room_for_finite(made, encoded)
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
    pixels = torch.arange(256, dtype=torch.uint8, device=DEVICE).repeat(3)
    exact = kernels.centred(dtype, pixels)
    assert exact.dtype == dtype
    assert torch.equal(exact.double(), (pixels.double() - 128) / 128)
    floats = pixels.float() / 127.5 - 1
    torch.testing.assert_close(kernels.centred(torch.float32, floats), (pixels - 128.0) / 128)


def test_widths_that_no_tensor_core_takes_are_painted_by_torch():
    assert kernels.can_paint(32, 64)
    assert kernels.can_paint(16, 1024)
    assert not kernels.can_paint(8, 64)
    assert not kernels.can_paint(48, 64)
    assert not kernels.can_paint(32, 16)
    assert type(fused(seeded_model(TINY))._head) is FieldHead


COMPILE = Path(__file__).with_name("compiling.py")


@pytest.mark.parametrize("capability", [80, 90, 120])
def test_they_compile_for_real_cards_and_keep_their_numbers_in_registers(capability):
    """By Triton's own assembler, which needs no card."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    ran = subprocess.run(
        [sys.executable, COMPILE, str(capability)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("registers") == 8
    assert ran.stdout.count(" 0 spilled") == 8, ran.stdout

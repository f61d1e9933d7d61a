"""The self-test of the fused form: what computes something else, or not at all, is not used.

On a card, else in Triton's interpreter.
"""

import subprocess
import sys
import sysconfig

import pytest
import torch

pytest.importorskip("triton")

from stae_cli.codec.cpu.affine import Placement
from stae_cli.codec.cpu.folding import PlainBackend, Weights
from stae_cli.codec.cuda import kernels, selftest
from stae_cli.codec.cuda.folding import FusedBackend
from stae_cli.codec.cuda.layers import FusedFieldHead
from stae_cli.codec.cuda.selftest import UnfusedError, choose_form, fused_form
from stae_cli.network.architecture import PRESETS
from tests.codec.interpreted import DEVICE, SILENT_OVERFLOWS, SMALL
from tests.seeded import seeded_model, tiny_like

HALF = torch.float16
DTYPES = [torch.float32, HALF, torch.bfloat16]

pytestmark = [*SILENT_OVERFLOWS, pytest.mark.usefixtures("with_tensor_cores")]


@pytest.fixture(scope="module")
def model():
    return seeded_model(SMALL)


def why_unfused(model, dtype=HALF):
    with pytest.raises(UnfusedError) as caught:
        fused_form(model, Placement(DEVICE, dtype))
    return str(caught.value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_fused_form_passes(model, dtype):
    form = fused_form(model, Placement(DEVICE, dtype))
    assert isinstance(form._backend, FusedBackend)
    if dtype != torch.bfloat16:
        assert isinstance(form._head, FusedFieldHead)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["f8c16-1x1", "f8c16-shuffle", "f32c64"])
def test_other_networks_pass(name, dtype, monkeypatch):
    if DEVICE.type == "cpu":  # the interpreter takes its time for each of a cell's 16 patches
        monkeypatch.setattr(selftest, "SIZES", ((3, 5), (1, 1), (5, 5)))
    fused_form(seeded_model(tiny_like(PRESETS[name])), Placement(DEVICE, dtype))


def test_weights_that_overflow_half_precision_are_no_fault_of_the_kernels():
    """Where some positions do, the others are compared; where all do, nothing can be."""
    large = seeded_model(SMALL)
    with torch.no_grad():
        large.encoder[0].out.model[2].weight[0] *= 60000
    fused_form(large, Placement(DEVICE, HALF))
    with torch.no_grad():
        large.encoder[0].out.model[2].bias[1] = 1e5
    assert why_unfused(large) == "these weights overflow torch.float16"


def without_deferred_bias(rows, deferred):
    return NORMED(rows, torch.zeros_like(deferred))


def unnormed(rows, deferred):
    return rows + deferred.to(rows.dtype)


def norm_of_half_the_channels(rows, deferred):
    wide = rows.float() + deferred
    scale = wide[:, ::2].square().mean(1, keepdim=True).add(1e-8).rsqrt()
    return (wide * scale).to(rows.dtype)


def last_row_wrong(rows, deferred):
    result = NORMED(rows, deferred)
    result[-1] *= 1.1
    return result


def adding_nothing(rows, product, deferred):
    return NORMED(rows, deferred)


def adding_without_deferred_bias(rows, product, deferred):
    return ADD_NORMED(rows, product, torch.zeros_like(deferred))


def swapped_gate(up):
    gate, act = up.chunk(2, 1)
    return GEGLU(torch.cat((act, gate), 1))


def ungated(up):
    return torch.nn.functional.gelu(up.chunk(2, 1)[1], approximate="tanh")


def swapped_colours(image, patch, dtype):
    return CUT(image.flip(-1), patch, dtype)


def swapped_axes(image, patch, dtype):
    patches = CUT(image, patch, dtype).unflatten(1, (patch, patch, 3))
    return patches.transpose(1, 2).flatten(1)


def badly_centred(image, patch, dtype):
    return CUT(image, patch, dtype) + 1 / 16


def one_pixel_wrong(made, encoded, constant, canvas, finite, *, across, first):
    moved = constant.clone()
    moved[1, 5] += 0.25
    PAINT(made, encoded, moved, canvas, finite, across=across, first=first)


def constant_dropped(made, encoded, constant, canvas, finite, *, across, first):
    PAINT(made, encoded, torch.zeros_like(constant), canvas, finite, across=across, first=first)


def misplaced(made, encoded, constant, canvas, finite, *, across, first):
    PAINT(made.roll(1, 0), encoded, constant, canvas, finite, across=across, first=first)


def nothing_finite(*given, **named):
    PAINT(*given, **named)
    given[4].zero_()


def everything_finite(*given, **named):
    PAINT(*given, **named)
    given[4].fill_(1)


def spoiling_all(*given, **named):
    """One patch that is not finite takes all others of the picture with it."""
    PAINT(*given, **named)
    given[4].copy_(given[4].min().expand_as(given[4]).clone())


def wrong_bytes(*given, **named):
    PAINT(*given, **named)
    if given[3].dtype == torch.uint8:
        given[3].add_(3)


NORMED, ADD_NORMED, GEGLU = kernels.normed, kernels.add_normed, kernels.geglu
CUT, PAINT = kernels.cut, kernels.paint
WRONG = [
    ("normed", without_deferred_bias, "encoding bytes"),
    ("normed", unnormed, "encoding bytes"),
    ("normed", norm_of_half_the_channels, "encoding bytes"),
    ("normed", last_row_wrong, "encoding bytes"),
    ("add_normed", adding_nothing, "decoding"),
    ("add_normed", adding_without_deferred_bias, "decoding"),
    ("geglu", swapped_gate, "encoding bytes"),
    ("geglu", ungated, "encoding bytes"),
    ("cut", swapped_colours, "encoding bytes"),
    ("cut", swapped_axes, "encoding bytes"),
    ("cut", badly_centred, "encoding bytes"),
    ("paint", one_pixel_wrong, "decoding"),
    ("paint", constant_dropped, "decoding"),
    ("paint", misplaced, "decoding"),
    ("paint", nothing_finite, "decoding to bytes"),
    ("paint", everything_finite, "a latent is not finite"),
    ("paint", spoiling_all, "a latent is not finite"),
    ("paint", wrong_bytes, "decoding to bytes"),
]


# Only these: on the CPU, float32's convolution spreads what is not finite over all of a picture.
OF_ALL_DTYPES = [without_deferred_bias, norm_of_half_the_channels, swapped_gate, one_pixel_wrong]
CASES = [pytest.param(HALF, *each, id=each[1].__name__) for each in WRONG]
CASES += [
    pytest.param(dtype, *each, id=f"{each[1].__name__}-{dtype}")
    for dtype in (torch.float32, torch.bfloat16)
    for each in WRONG
    if each[1] in OF_ALL_DTYPES and (dtype == torch.float32 or each[0] != "paint")
]


@pytest.mark.parametrize(("dtype", "kernel", "wrong", "when"), CASES)
def test_a_wrong_kernel_is_found(model, monkeypatch, dtype, kernel, wrong, when):
    monkeypatch.setattr(kernels, kernel, wrong)
    assert why_unfused(model, dtype) == f"Triton computes something else when {when}"


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
def test_a_dropped_bias_is_found(model, monkeypatch, dtype):
    monkeypatch.setattr(Weights, "after", lambda weights, deferred: weights)
    assert "encoding bytes" in why_unfused(model, dtype)


def test_rows_that_depend_on_their_company_are_found(model, monkeypatch):
    def careless(rows, deferred):
        return NORMED(rows, deferred) * (1 + 2**-9 * rows.isnan().any())

    monkeypatch.setattr(kernels, "normed", careless)
    assert why_unfused(model).endswith("a pixel is not finite")


def test_strides_that_are_ignored_are_found(model, monkeypatch):
    def careless(image, patch, dtype):
        plain = image if image.dtype == torch.uint8 else image.permute(1, 2, 0).reshape(image.shape)
        return CUT(plain, patch, dtype)

    monkeypatch.setattr(kernels, "cut", careless)
    assert why_unfused(model).endswith("encoding floats")


def test_a_compiler_that_fails_is_a_reason_not_an_error(model, monkeypatch):
    def fail(*_given):
        raise RuntimeError("Failed to find C compiler.\nPlease specify one")

    monkeypatch.setattr(kernels, "normed", fail)
    assert why_unfused(model) == "Triton does not work here (Failed to find C compiler.)"


def test_a_missing_triton_is_a_reason(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "stae_cli.codec.cuda.folding", None)
    assert why_unfused(model).startswith("Triton is not installed")


@pytest.mark.parametrize(
    ("there", "words"), [(False, "Python.h` is missing"), (True, "gcc")], ids=["none", "some"]
)
def test_headers_that_a_compiler_needs_are_named(model, monkeypatch, tmp_path, there, words):
    def fail(*_given):
        raise subprocess.CalledProcessError(1, ["gcc", "main.c"])

    if there:
        (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_config_var", {"INCLUDEPY": tmp_path}.get)
    monkeypatch.setattr(kernels, "normed", fail)
    assert words in why_unfused(model)


def test_memory_that_ends_is_no_reason_to_do_without(model, monkeypatch):
    def fail(*_given):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(kernels, "normed", fail)
    with pytest.raises(torch.OutOfMemoryError):
        fused_form(model, Placement(DEVICE, HALF))
    monkeypatch.undo()


def test_triton_can_be_left_out(model, monkeypatch):
    monkeypatch.setenv("STAE_TRITON", "0")
    assert why_unfused(model) == "STAE_TRITON=0"


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("works", [False, True])
def test_the_fused_form_is_tried_on_cuda_alone(monkeypatch, kind, triton, works):
    def tried(_model, _place):
        if not works:
            raise UnfusedError("no compiler")
        return "fused"

    monkeypatch.setattr(selftest, "fused_form", tried)
    monkeypatch.setattr(selftest, "InferenceForm", lambda _model, backend: backend)
    place = Placement(torch.device(kind), HALF)
    form, reason = choose_form(None, place, triton=triton)
    if kind == "cuda" and triton:
        assert (form, reason) == (
            ("fused", None) if works else (PlainBackend(place), "no compiler")
        )
    else:
        assert (form, reason) == (PlainBackend(place), None)

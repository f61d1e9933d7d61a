"""Matrix products with epilogues: on a card, else in Triton's interpreter.

The interpreter executes the same programs on the CPU, tile by tile. That they compile for real
cards into what makes them fast is tried too; how fast they are only a card can show.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import gelu

pytest.importorskip("triton")

from stae_cli.codec.arithmetic import plain_arithmetic
from stae_cli.codec.cuda import products
from stae_cli.codec.cuda.products import Norm, Tiles, tiles_for

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
POINTERS = Tiles(16, 32, warps=4, stages=2)
COPIES = replace(POINTERS, programs=1)  # one program for all tiles, by the copy engine
HALVED = Tiles(16, 256, warps=4, stages=2)
TILES = [POINTERS, COPIES, HALVED, replace(HALVED, stages=1, programs=1)]  # in float32 too
DTYPES = [torch.float32, torch.float16]
ROUNDING = {torch.float32: 3e-6, torch.float16: 6e-4}  # relative, of sums and of the result
ACTIVATIONS = {
    "plain": lambda raised: raised,
    "tanh": lambda raised: gelu(raised, approximate="tanh"),
    "exact": gelu,
    "geglu": lambda raised: raised.chunk(2, 1)[0] * gelu(raised.chunk(2, 1)[1], approximate="tanh"),
}

pytestmark = [
    # Overflows that a device meets in silence, numpy tells of.
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def _plain():
    with plain_arithmetic(DEVICE):
        yield


def drawn(*shape, dtype=torch.float32, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(DEVICE, dtype)


def layer(outputs, inputs, dtype=torch.float32):
    weight = drawn(outputs, inputs, seed=1) / inputs**0.5
    return weight.to(dtype), drawn(outputs, seed=2)


def multiplied(form, rows, weight, bias, norm=None, tiles=POINTERS):
    if form == "plain":
        return products.product(rows, weight, bias, tiles=tiles)
    if form == "geglu":
        if norm is not None:
            norm = Norm(norm.squares, products.interleaved(norm.shift))
        weight, bias = products.interleaved(weight), products.interleaved(bias)
        return products.geglu_product(rows, weight, bias, norm=norm, tiles=tiles)
    return products.gelu_product(rows, weight, bias, exact=form == "exact", norm=norm, tiles=tiles)


def expected(form, rows, weight, bias):
    return ACTIVATIONS[form](rows.double() @ weight.double().T + bias.double())


def normed(rows):
    return rows * torch.rsqrt(rows.square().mean(1, keepdim=True) + 1e-8)


def assert_near(found, meant):
    rounding = ROUNDING[found.dtype]
    torch.testing.assert_close(found.double(), meant, rtol=rounding, atol=2 * rounding)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("form", ACTIVATIONS)
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 48), (192, 288), (48, 96), (512, 16)])
def test_products_are_what_float64_says(form, inputs, outputs, tiles, dtype):
    rows = drawn(37, inputs, dtype=dtype)
    weight, bias = layer(outputs, inputs, dtype)
    found = multiplied(form, rows, weight, bias, tiles=tiles)
    assert found.dtype == dtype
    assert_near(found, expected(form, rows, weight, bias))


@pytest.mark.parametrize("form", ACTIVATIONS)
def test_the_chosen_tiles_do(form):
    rows, (weight, bias) = drawn(131, 64), layer(512, 64)
    assert_near(
        multiplied(form, rows, weight, bias, tiles=None), expected(form, rows, weight, bias)
    )


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    ("shared", "engine"), [(64, False), (99, False), (163, False), (227, False), (227, True)]
)
def test_the_chosen_tiles_fit(shared, engine, size):
    for outputs in (16, 512, 2048):
        for adds in (False, True):
            cut = tiles_for(outputs, shared * 1024, size=size, engine=engine, adds=adds)
            held = cut.stages if cut.programs else cut.stages - 1
            factors = (cut.rows + cut.columns) * products.STEP * size
            assert held * factors <= shared * 1024


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tiles", TILES)
def test_products_are_added_in_place_and_rounded_once(tiles, dtype):
    rows, hidden = drawn(37, 512, dtype=dtype), drawn(37, 96, dtype=dtype, seed=3)
    weight, bias = layer(512, 96, dtype)
    meant = rows.double() + expected("plain", hidden, weight, bias * 0)
    place = rows.data_ptr()
    products.add_product(rows, hidden, weight, tiles=tiles)
    assert rows.data_ptr() == place
    assert_near(rows, meant)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("form", ["tanh", "exact", "geglu"])
@pytest.mark.parametrize("width", [48, 512])
def test_rows_are_normed_after_the_product(form, width, tiles, dtype):
    rows, hidden = drawn(37, width, dtype=dtype) * 3, drawn(37, 64, dtype=dtype, seed=3)
    down, _ = layer(width, 64, dtype)
    lacking = drawn(width, seed=4)
    squares = products.add_product_squares(rows, hidden, down, lacking, tiles=tiles)
    whole = rows.double() + lacking.double()
    torch.testing.assert_close(squares.double().sum(0), whole.square().sum(1), rtol=1e-5, atol=0)
    weight, bias = layer(96, width, dtype)
    norm = Norm(squares, (lacking.double() @ weight.double().T).float())
    found = multiplied(form, rows, weight, bias, norm, tiles)
    assert_near(found, expected(form, normed(whole), weight, bias))


def test_a_product_that_starts_the_rows_has_their_squares_too():
    cells, lacking = drawn(37, 192), drawn(96, seed=4)
    weight, bias = layer(96, 192)
    rows, squares = products.product_squares(cells, weight, bias, lacking, tiles=POINTERS)
    assert torch.equal(rows, products.product(cells, weight, bias, tiles=POINTERS))
    meant = (rows + lacking).double().square().sum(1)
    torch.testing.assert_close(squares.double().sum(0), meant, rtol=1e-5, atol=0)


@pytest.mark.parametrize("tiles", TILES)
@settings(max_examples=3)
@given(first=st.integers(0, 60), count=st.integers(1, 40))
def test_a_row_has_the_same_bytes_alone_and_in_company(tiles, first, count):
    rows, hidden = drawn(101, 64, dtype=torch.float16), drawn(101, 96, dtype=torch.float16, seed=3)
    part = slice(first, first + count)

    def computed(rows, hidden):
        rows, (down, bias) = rows.clone(), layer(64, 96, torch.float16)
        squares = products.add_product_squares(rows, hidden, down, bias, tiles=tiles)
        weight, bias = layer(96, 64, torch.float16)
        results = [multiplied(each, rows, weight, bias, Norm(squares, bias), tiles)
                   for each in ("geglu", "tanh", "exact")]  # fmt: skip
        return [rows, squares.T, multiplied("plain", rows, weight, bias, tiles=tiles), *results]

    whole = computed(rows, hidden)
    for alone, company in zip(computed(rows[part], hidden[part]), whole, strict=True):
        assert torch.equal(alone, company[part])


def test_all_numbers_of_rows_meet_the_same_program(monkeypatch):
    """What the interpreter multiplies exactly, a card sums in the order that its program says."""
    seen = []

    class Recorder:
        def __getitem__(self, grid):
            return lambda *_, **constants: seen.append(constants)

    monkeypatch.setattr(products, "_multiply", Recorder())
    weight, bias = layer(96, 64)
    for count in (1, 16, 128, 1000, 20000):
        products.product(torch.empty(count, 64, device=DEVICE), weight, bias)
    assert all(each == seen[0] for each in seen)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("tiles", [POINTERS, COPIES])
def test_what_is_not_finite_stays_in_its_row(tiles, value):
    rows, hidden, (down, _) = drawn(37, 64), drawn(37, 96, seed=3), layer(64, 96)
    weight, bias = layer(96, 64)
    others = torch.arange(37, device=DEVICE) != 36  # the last one fills up the last tile
    results = []
    for spoilt in (False, True):
        hidden[36, 5] = value if spoilt else 0
        total = rows.clone()
        squares = products.add_product_squares(total, hidden, down, down[:, 0], tiles=tiles)
        for form in ("geglu", "tanh", "exact"):
            results.append(multiplied(form, total, weight, bias, Norm(squares, bias), tiles))
    for sound, found in zip(results[:3], results[3:], strict=True):
        assert torch.equal(found[others], sound[others])
        assert not found[36].isfinite().any()


@pytest.mark.parametrize("form", ["tanh", "exact"])
def test_activations_keep_the_digits_of_small_results(form):
    values = torch.linspace(-9, 9, 4096).view(-1, 16).to(DEVICE)
    identity = torch.eye(16, device=DEVICE)
    found = multiplied(form, values, identity, identity[0] * 0).double()
    meant = ACTIVATIONS[form](values.double())
    # A card's reciprocal root is off by up to 2^-22, twice as much when squared.
    torch.testing.assert_close(found, meant, rtol=1e-6, atol=3e-7)
    middle = (values > -5) & (values < -0.1)  # where float64's own erf has digits left
    torch.testing.assert_close(found[middle], meant[middle], rtol=2**-9, atol=0)


@pytest.mark.parametrize("form", ["tanh", "exact"])
def test_activations_survive_large_values(form):
    values = torch.tensor([-1e30, -1e20, -65504.0, -100.0, 100.0, 65504.0, 1e20, 1e30])
    values = torch.cat((values, values)).view(1, 16).to(DEVICE)
    identity = torch.eye(16, device=DEVICE)
    found = multiplied(form, values, identity, identity[0] * 0)
    assert torch.equal(found, values.clamp(min=0))


def test_gates_and_what_they_gate_alternate():
    order = products.interleaved(torch.arange(64))
    assert order[:24].tolist() == [*range(8), *range(32, 40), *range(8, 16)]
    assert order.sort().values.tolist() == list(range(64))
    assert products.interleaved(torch.zeros(64, 7)).shape == (64, 7)


def test_no_rows_are_no_trouble():
    weight, bias = layer(96, 64)
    nothing = torch.empty(0, 64, device=DEVICE)
    assert products.product(nothing, weight, bias).shape == (0, 96)
    assert multiplied("geglu", nothing, weight, bias, tiles=COPIES).shape == (0, 48)


def test_rows_that_the_copy_engine_cannot_read_are_read_otherwise():
    rows, (weight, bias) = drawn(37, 20, dtype=torch.float16), layer(96, 20, torch.float16)
    assert not products.can_multiply(20, 96)
    found = multiplied("plain", rows, weight, bias, tiles=COPIES)
    assert_near(found, expected("plain", rows, weight, bias))
    shifted = drawn(37 * 64 + 1, dtype=torch.float16)[1:].view(37, 64)
    weight, bias = layer(96, 64, torch.float16)
    found = multiplied("plain", shifted, weight, bias, tiles=COPIES)
    assert_near(found, expected("plain", shifted, weight, bias))


def test_the_network_can_be_multiplied():
    sizes = [(192, 512), (512, 1024), (1024, 512), (512, 512), (512, 16), (16, 512)]
    assert all(products.can_multiply(*each) for each in sizes)
    assert not products.can_multiply(8, 512)
    assert not products.can_multiply(512, 12)


COMPILE = Path(__file__).with_name("compiling_products.py")


@pytest.mark.parametrize(("capability", "multiplies"), [(80, "HMMA"), (90, "HGMMA"), (120, "HMMA")])
def test_they_compile_for_real_cards_into_what_is_fast(capability, multiplies):
    """By Triton's own assembler, which needs no card."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    ran = subprocess.run(
        [sys.executable, COMPILE, str(capability)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    every = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(every) == 9
    for each in every:
        code = " ".join(each["code"])
        assert each["stack"] == 0, each["name"]
        assert each["shared"] <= each["most_shared"], each["name"]
        assert "LDL" not in code
        assert "STL" not in code
        assert f"{multiplies}." in code, each["name"]
        # Factors come 16 bytes at a time, or by the copy engine, while others are multiplied.
        assert "UTMALDG." in code or "LDGSTS.E.BYPASS.128" in code, each["name"]
        assert "LDGSTS.E " not in code
        assert "STG.E.U16" not in code, each["name"]

"""Matrix products for CUDA devices, with what surrounds them in their epilogues.

All are one Triton kernel on contiguous matrices, one row per position: `rows @ weight.T` in float32
accumulators, and on these, before anything is stored, the norm of the rows, biases, GELU, gates and
the residual. A row is summed in steps of `STEP` inputs by the same program for any number of rows
and at any place among them, so that its result has the same bytes alone and in company.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from stae_cli.network.stupid_ae import CHANNEL_NORM_EPS

STEP = 64  # inputs at once, on every device: they decide the order of summation
SPAN = 128  # columns at most that are finished and stored at once
GROUP = 8  # columns of a gate, before as many of what it gates
NARROWEST = 16  # sides of the matrices that a tensor core takes
NARROW = 64  # outputs up to which reading the rows takes longer than multiplying them
HALF = 2  # bytes of the numbers that tensor cores multiply
ALIGNMENT = 16  # bytes, of whatever the copy engine reads
HOPPER = 9  # major compute capability; its successors need more memory for the same tiles


@dataclass(frozen=True)
class Tiles:
    """How a product is cut: this changes its speed, and the order of summation not at all.

    Args:
        rows: of the result, per program; a power of 2.
        columns: of the product, likewise, at most twice `SPAN`.
        warps: per program.
        stages: tiles of both factors that are on their way or in use at once.
        programs: 0 for one per tile; else how many a multiprocessor holds, each of which takes one
            tile after another, and has Hopper's copy engine fetch the next while it finishes one.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    programs: int = 0


@dataclass(frozen=True)
class Norm:
    """What divides rows by their root mean square after the product instead of before.

    Args:
        squares: (parts, M) float32, as `add_product_squares` and `product_squares` return them.
        shift: (outputs,) float32, the product of what every row lacks: `lacking @ weight.T`.
    """

    squares: Tensor
    shift: Tensor


def can_multiply(inputs: int, outputs: int) -> bool:
    """Whether products of such rows are made here; for a GEGLU, `outputs` is its hidden width."""
    return inputs >= NARROWEST and inputs % GROUP == 0 and outputs % GROUP == 0


def interleaved(tensor: Tensor) -> Tensor:
    """(2 * hidden, ...), all gates first -> groups of gates and of what they gate in turn.

    This is the order that `geglu_product` takes weights, biases and shifts in: a thread then holds
    a gate and what it gates in its own registers.
    """
    gate, act = tensor.unflatten(0, (2, -1, GROUP))
    return torch.stack((gate, act), 1).flatten(0, 2)


def geglu_product(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    norm: Norm | None = None,
    tiles: Tiles | None = None,
) -> Tensor:
    """Gate * tanh-GELU(act) of rows (M, inputs) -> (M, hidden).

    Args:
        rows: they are normalised if there is a `norm`, else taken as they are.
        weight: (2 * hidden, inputs), `interleaved`; so are the bias and the norm's shift.
        bias: (2 * hidden,).
        norm: of the rows.
        tiles: instead of those that `tiles_for` chooses.
    """
    result = rows.new_empty(len(rows), len(weight) // 2)
    _launch(rows, weight, result, bias=bias, form="geglu", norm=norm, tiles=tiles)
    return result


def gelu_product(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    exact: bool,
    norm: Norm | None = None,
    result: Tensor | None = None,
    tiles: Tiles | None = None,
) -> Tensor:
    """GELU (by erf if exact, else by tanh) of rows @ weight.T + bias -> (M, outputs), `result`."""
    result = rows.new_empty(len(rows), len(weight)) if result is None else result
    form = "exact" if exact else "tanh"
    _launch(rows, weight, result, bias=bias, form=form, norm=norm, tiles=tiles)
    return result


def product(rows: Tensor, weight: Tensor, bias: Tensor, *, tiles: Tiles | None = None) -> Tensor:
    """Rows (M, inputs) @ weight.T + bias -> (M, outputs)."""
    result = rows.new_empty(len(rows), len(weight))
    _launch(rows, weight, result, bias=bias, tiles=tiles)
    return result


def product_squares(
    rows: Tensor, weight: Tensor, bias: Tensor, lacking: Tensor, *, tiles: Tiles | None = None
) -> tuple[Tensor, Tensor]:
    """`product`, and of its rows what `add_product_squares` returns."""
    result = rows.new_empty(len(rows), len(weight))
    squares = _launch(rows, weight, result, bias=bias, lacking=lacking, tiles=tiles)
    return result, squares


def add_product(
    rows: Tensor, hidden: Tensor, weight: Tensor, *, tiles: Tiles | None = None
) -> None:
    """Rows (M, width) += hidden (M, inputs) @ weight.T, in place, rounded once."""
    _launch(hidden, weight, rows, adds=True, tiles=tiles)


def add_product_squares(
    rows: Tensor,
    hidden: Tensor,
    weight: Tensor,
    lacking: Tensor,
    *,
    tiles: Tiles | None = None,
) -> Tensor:
    """`add_product`, and the rows' squares for the `Norm` of the product that follows.

    Args:
        rows: (M, width), overwritten.
        hidden: (M, inputs).
        weight: (width, inputs).
        lacking: (width,) float32, what belongs to every row and was not added to any.
        tiles: instead of those that `tiles_for` chooses.

    Returns:
        (parts, M) float32: sums of (row + lacking)^2 over some columns each.
    """
    return _launch(hidden, weight, rows, adds=True, lacking=lacking, tiles=tiles)


def tiles_for(outputs: int, shared: int, *, size: int, engine: bool, adds: bool) -> Tiles:
    """The tiles that fit.

    Args:
        outputs: columns of the product.
        size: bytes of a factor's element; what has more than 2 is for tests, and small everywhere.
        shared: bytes of shared memory that a program may have.
        engine: whether the device has Hopper's copy engine.
        adds: whether the epilogue reads a residual, for which it needs memory.
    """
    if size > HALF:
        return Tiles(64, 64, warps=4, stages=2)
    if outputs <= NARROW:
        return Tiles(64, NARROW, warps=4, stages=4, programs=4 * engine)
    if engine and shared >= 227 * 1024:
        return Tiles(128, 256, warps=8, stages=3 if adds else 4, programs=1)
    if shared >= 163 * 1024:
        return Tiles(128, 256, warps=8, stages=4)
    return Tiles(128, 128, warps=8, stages=4 if shared >= 99 * 1024 else 3)


def configurations(*, adds: bool) -> list[Tiles]:
    """Tiles worth a measurement on a card with 227 kB of shared memory, the chosen ones first."""
    common = [
        Tiles(128, 256, warps=8, stages=3, programs=1),
        Tiles(128, 256, warps=8, stages=4),
        Tiles(128, 128, warps=4, stages=3),  # two at once, one of which multiplies meanwhile
        Tiles(128, 128, warps=8, stages=4, programs=1),
    ]
    if adds:
        return common
    return [
        Tiles(128, 256, warps=8, stages=4, programs=1),
        Tiles(256, 128, warps=8, stages=3, programs=1),
        *common,
    ]


def _launch(
    rows: Tensor,
    weight: Tensor,
    result: Tensor,
    *,
    bias: Tensor | None = None,
    form: str = "plain",
    norm: Norm | None = None,
    adds: bool = False,
    lacking: Tensor | None = None,
    tiles: Tiles | None = None,
) -> Tensor:
    """Multiplies; returns (parts, M) of squares, none where nothing is lacking."""
    (count, inputs), outputs = rows.shape, len(weight)
    assert norm is None or norm.squares.shape[1] == count
    factors = rows, weight, result
    cut = _fitted(tiles or _chosen(rows, outputs, adds), factors, outputs)
    step = min(STEP, triton.next_power_of_2(inputs))
    span = cut.columns // 2 if form == "geglu" else min(cut.columns, SPAN)
    parts = triton.cdiv(outputs, span) if lacking is not None else 0
    squares = torch.empty(parts, count, dtype=torch.float32, device=rows.device)
    if not count:
        return squares
    programs = triton.cdiv(count, cut.rows) * triton.cdiv(outputs, cut.columns)
    if cut.programs:
        programs = min(programs, cut.programs * _multiprocessors(rows.device))
    with torch.cuda.device_of(rows):
        _multiply[(programs,)](
            *_sources(factors, cut, step, span), bias,
            norm and norm.squares, norm and norm.shift, lacking, squares, count,
            inputs=inputs, outputs=outputs, parts=len(norm.squares) if norm else 0,
            form=form, adds=adds, rows=cut.rows, columns=cut.columns, step=step, span=span,
            group=GROUP, eps=CHANNEL_NORM_EPS, stays=bool(cut.programs),
            num_warps=cut.warps, num_stages=cut.stages,
        )  # fmt: skip
    return squares


def _chosen(rows: Tensor, outputs: int, adds: bool) -> Tiles:
    shared, engine = _abilities(rows.device)
    return tiles_for(outputs, shared, size=rows.element_size(), engine=engine, adds=adds)


def _sources(factors: Sequence[Tensor], cut: Tiles, step: int, span: int) -> Sequence[object]:
    """What the kernel reads both factors from and writes the result to."""
    if not cut.programs:
        return factors
    shapes = [cut.rows, step], [cut.columns, step], [cut.rows, span]
    return [TensorDescriptor.from_tensor(*each) for each in zip(factors, shapes, strict=True)]


def _fitted(tiles: Tiles, factors: Sequence[Tensor], outputs: int) -> Tiles:
    """No wider than the product; without the copy engine where that cannot read."""
    columns = min(tiles.columns, max(NARROWEST, triton.next_power_of_2(outputs)))
    aligned = all(
        each.shape[1] * each.element_size() % ALIGNMENT == 0 and each.data_ptr() % ALIGNMENT == 0
        for each in factors
    )
    return replace(tiles, columns=columns, programs=tiles.programs if aligned else 0)


@lru_cache
def _abilities(device: torch.device) -> tuple[int, bool]:
    """Bytes of shared memory that a program may have, and whether there is a copy engine."""
    if device.type != "cuda":
        return 0, False
    properties = torch.cuda.get_device_properties(device)
    shared = getattr(properties, "shared_memory_per_block_optin", 64 * 1024)
    return shared, torch.version.hip is None and properties.major == HOPPER


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


# Numbers of rows differ from call to call: specialised, they would be compiled again and again.
# Columns of tiles come first, so that programs at work together share rows and the whole weight.


@triton.jit(do_not_specialize=["count"])
def _multiply(
    left, right, result, bias_at, squares_at, shift_at, lacking_at, parts_at, count,
    inputs: tl.constexpr, outputs: tl.constexpr, parts: tl.constexpr,
    form: tl.constexpr, adds: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
    step: tl.constexpr, span: tl.constexpr, group: tl.constexpr, eps: tl.constexpr,
    stays: tl.constexpr,
):  # fmt: skip
    across: tl.constexpr = (outputs + columns - 1) // columns
    tiles = tl.cdiv(count, rows) * across
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=stays):
        first = tile // across * rows
        start = tile % across * columns
        total = tl.zeros((rows, columns), tl.float32)
        for inner in range(0, inputs, step):
            ours = _tile(left, first, inner, count, inputs, rows, step, stays)
            theirs = _tile(right, start, inner, outputs, inputs, columns, step, stays)
            total = tl.dot(ours, tl.trans(theirs), total, input_precision="ieee")
        column = start + tl.arange(0, columns)
        if squares_at is not None:
            scale = _scale(squares_at, first + tl.arange(0, rows), count, inputs, parts, rows, eps)
            total = (total + _vector(shift_at, column, outputs, columns)) * scale[:, None]
        if bias_at is not None:
            total += _vector(bias_at, column, outputs, columns)
        if form == "geglu":
            gate, act = _alternating(total, rows, columns, group)
            _finish(gate * _tanh_gelu(act), result, lacking_at, parts_at, first, start // 2,
                    count, outputs // 2, rows, span, False, stays)  # fmt: skip
        elif columns == span:
            _finish(_formed(total, form), result, lacking_at, parts_at, first, start,
                    count, outputs, rows, span, adds, stays)  # fmt: skip
        else:
            one, other = _formed(total, form).reshape(rows, 2, span).permute(0, 2, 1).split()
            _finish(one, result, lacking_at, parts_at, first, start,
                    count, outputs, rows, span, adds, stays)  # fmt: skip
            _finish(other, result, lacking_at, parts_at, first, start + span,
                    count, outputs, rows, span, adds, stays)  # fmt: skip


@triton.jit
def _tile(
    source, first, start, count, width: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr,
    described: tl.constexpr,
):  # fmt: skip
    """(tall, wide) of a matrix (count, width); zeros right of it, any numbers below it."""
    if described:
        tile = source.load([first, start])
    else:
        row = tl.minimum(tl.arange(0, tall), count - 1 - first)
        column = start + tl.arange(0, wide)
        place = source + first.to(tl.int64) * width + (row[:, None] * width + column[None, :])
        if width % wide == 0:
            tile = tl.load(place)
        else:
            tile = tl.load(place, mask=(column < width)[None, :], other=0.0)
    return tile


@triton.jit
def _vector(source, column, width: tl.constexpr, columns: tl.constexpr):
    if width % columns == 0:
        values = tl.load(source + column)
    else:
        values = tl.load(source + column, mask=column < width, other=0.0)
    return values.to(tl.float32)[None, :]


@triton.jit
def _scale(
    squares_at, row, count, width: tl.constexpr, parts: tl.constexpr, rows: tl.constexpr,
    eps: tl.constexpr,
):  # fmt: skip
    squares = tl.zeros((rows,), tl.float32)
    for part in tl.static_range(parts):
        place = squares_at + row + tl.cast(count, tl.int64) * part
        squares += tl.load(place, mask=row < count, other=0.0)
    return tl.rsqrt(squares / width + eps)


@triton.jit
def _alternating(total, rows: tl.constexpr, columns: tl.constexpr, group: tl.constexpr):
    pairs = total.reshape(rows, columns // (2 * group), 2, group).permute(0, 1, 3, 2)
    gate, act = pairs.split()
    return gate.reshape(rows, columns // 2), act.reshape(rows, columns // 2)


@triton.jit
def _formed(total, form: tl.constexpr):
    if form == "tanh":
        total = _tanh_gelu(total)
    elif form == "exact":
        total = _exact_gelu(total)
    return total


# Both take two special functions: a division would take as many and its rarest cases' care, where
# the square of a reciprocal root is as exact as is needed.


@triton.jit
def _tanh_gelu(value):
    """Value * sigmoid(2 t) is value * (1 + tanh(t)) / 2: t = sqrt(2 / pi) (v + 0.044715 v^3)."""
    power = value * (-2.3022081985 - 0.1029432396 * value * value)  # -2 t / ln(2)
    root = tl.rsqrt(1.0 + tl.exp2(power))
    return value * root * root


@triton.jit
def _exact_gelu(value):
    # The tail of erf by Abramowitz and Stegun's 7.1.26: to 1.5e-7, and to bfloat16's digits.
    size = tl.abs(value)
    root = tl.rsqrt(1.0 + 0.2316418882 * size)
    t = root * root
    tail = 0.7107068705 + t * (-0.7265760135 + t * 0.5307027145)
    tail = t * (0.127414796 + t * (-0.142248368 + t * tail))
    return tl.maximum(value, 0.0) - size * tail * tl.exp2(-0.7213475204 * value * value)


@triton.jit
def _finish(
    total, result, lacking_at, parts_at, first, start, count, width: tl.constexpr,
    rows: tl.constexpr, columns: tl.constexpr, adds: tl.constexpr, described: tl.constexpr,
):  # fmt: skip
    """Stores what is summed, on top of what is there if it `adds`; then the squares of that."""
    row = first + tl.arange(0, rows)
    column = start + tl.arange(0, columns)
    if described:
        if adds:
            total += result.load([first, start]).to(tl.float32)
        stored = total.to(result.dtype)
        result.store([first, start], stored)
    else:
        place = result + row.to(tl.int64)[:, None] * width + column[None, :]
        inside = (row < count)[:, None] & (column < width)[None, :]
        if adds:
            total += tl.load(place, mask=inside, other=0.0).to(tl.float32)
        stored = total.to(result.dtype.element_ty)
        tl.store(place, stored, mask=inside)
    if lacking_at is not None:
        whole = stored.to(tl.float32) + _vector(lacking_at, column, width, columns)
        if width % columns != 0:
            whole = tl.where((column < width)[None, :], whole, 0.0)
        place = parts_at + row + (start // columns).to(tl.int64) * count
        tl.store(place, tl.sum(whole * whole, axis=1), mask=row < count)

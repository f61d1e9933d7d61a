"""Triton kernels for what stands between the matrix products on a CUDA device.

Each reads and writes every activation once, where torch's own functions would take several passes
through memory. They work on contiguous matrices, one row per position, and compute in float32
whatever they store. Importing this module needs Triton, which torch's CUDA builds bring along.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from stae_cli.codec.tensors import COLOURS
from stae_cli.network.stupid_ae import CHANNEL_NORM_EPS, COLUMN_NORM_FLOOR

LANES = 4  # columns of a patch in the last product: its colours, and one that stays empty
PATCHES = 4  # painted by one program; 4 times 4 columns are as few as a tensor core takes
PIXELS = 64  # of a patch, painted by one program
VALUES = 2048  # of a matrix, per program

SMALLEST_FIELD = 16  # widths of a head that tensor cores multiply
LARGEST_FIELD = 64


def can_paint(width: int, pixels: int) -> bool:
    """Whether `painted` takes a head of this width, and patches of so many pixels."""
    fits = SMALLEST_FIELD <= width <= LARGEST_FIELD
    return fits and width & (width - 1) == 0 and pixels % PIXELS == 0


def cut(image: Tensor, patch: int, dtype: torch.dtype) -> Tensor:
    """The patches of an image (H, W, 3), or of images (B, H, W, 3) one after another, centred.

    Args:
        image: uint8, or float in [-1, 1], with any strides.
        patch: pixels on a side of a patch.
        dtype: of the result.

    Returns:
        (pixel - 128) / 128 as (n, patch * patch * 3), each row ordered by (row, column, channel).
    """
    images = image if image.ndim == 4 else image[None]
    count, down, across = len(images), images.shape[1] // patch, images.shape[2] // patch
    line = patch * COLOURS
    result = torch.empty(count * down * across, patch * line, dtype=dtype, device=image.device)
    scale, offset = (1 / 128, -1.0) if image.dtype == torch.uint8 else (127.5 / 128, -0.5 / 128)
    rows = triton.next_power_of_2(patch)
    values = max(1, VALUES // rows)
    with torch.cuda.device_of(image):
        _cut[(count * down, triton.cdiv(across * line, values))](
            images, result, down, across, *images.stride(), patch=patch, rows=rows,
            colours=COLOURS, values=values, scale=scale, offset=offset,
        )  # fmt: skip
    return result


def normed(rows: Tensor, deferred: Tensor) -> Tensor:
    """(rows + deferred) * rsqrt(mean((rows + deferred)^2) + eps), for rows (N, width).

    `deferred` (width,), float32, are the biases that were not added to the rows.
    """
    return _launch_norm(rows, rows, deferred, adds=False)


def add_normed(rows: Tensor, product: Tensor, deferred: Tensor) -> Tensor:
    """Adds a product (N, width) to the rows in place; then `normed`."""
    return _launch_norm(rows, product, deferred, adds=True)


def geglu(up: Tensor) -> Tensor:
    """(N, 2 * hidden), the gate before what it gates -> gate * tanh-GELU(act), (N, hidden)."""
    count, hidden = len(up), up.shape[1] // 2
    result = up.new_empty(count, hidden)
    span = triton.next_power_of_2(hidden)
    rows = max(1, VALUES // span)
    with torch.cuda.device_of(up):
        _geglu[(triton.cdiv(count, rows),)](up, result, count, hidden=hidden, span=span, rows=rows)
    return result


def paint(
    made: Tensor,
    encoded: Tensor,
    constant: Tensor,
    canvas: Tensor,
    finite: Tensor,
    *,
    across: int,
    first: int,
) -> None:
    """The neural field of each patch, where an image has that patch.

    Args:
        made: (N, width^2 + 3 * width), the matrices of each patch as its generator writes them.
        encoded: (P, width), the first matrix' left factor.
        constant: (3, P), added to the result.
        canvas: images of one width, one below another; uint8, to which pixels are rounded then, or
            in the dtype of `made`.
        finite: from `empty_finite`; zero where a number was not finite before it was rounded.
        across: how many patches an image is wide.
        first: which of the images' patches is the first of `made`.
    """
    count, (pixels, width) = len(made), encoded.shape
    with torch.cuda.device_of(made):
        _paint[(triton.cdiv(count, PATCHES), pixels // PIXELS)](
            made, encoded, constant, canvas, finite, count, first, across,
            width=width, patches=PATCHES, pixels=PIXELS, side=math.isqrt(pixels), lanes=LANES,
            colours=COLOURS, levels=canvas.dtype == torch.uint8, floor=COLUMN_NORM_FLOOR,
            num_warps=4,
        )  # fmt: skip


def empty_finite(rows: Tensor, encoded: Tensor) -> Tensor:
    """Uninitialised memory for the `finite` of `paint`, one row for each of `rows`: (N, values)."""
    blocks = len(encoded) // PIXELS
    return rows.new_empty(len(rows), blocks * COLOURS, dtype=torch.uint8)


def _launch_norm(rows: Tensor, product: Tensor, deferred: Tensor, *, adds: bool) -> Tensor:
    result = torch.empty_like(rows)
    count, width = rows.shape
    span = triton.next_power_of_2(width)
    at_once = max(1, VALUES // span)
    with torch.cuda.device_of(rows):
        _norm[(triton.cdiv(count, at_once),)](
            rows, product, deferred, result, count,
            width=width, span=span, rows=at_once, adds=adds, eps=CHANNEL_NORM_EPS,
        )  # fmt: skip
    return result


@triton.jit(do_not_specialize=["down", "across", "image_step", "row_step"])
def _cut(
    images_at, result_at, down, across, image_step, row_step, column_step, colour_step,
    patch: tl.constexpr, rows: tl.constexpr, colours: tl.constexpr, values: tl.constexpr,
    scale: tl.constexpr, offset: tl.constexpr,
):  # fmt: skip
    line: tl.constexpr = patch * colours
    top = tl.program_id(0).to(tl.int64)  # a row of patches, of all images
    row = tl.arange(0, rows)
    place = tl.program_id(1) * values + tl.arange(0, values)  # in a row of pixels
    length = across * line
    inside = (row < patch)[:, None] & (place < length)[None, :]
    column, colour = (place // colours).to(tl.int64), (place % colours).to(tl.int64)
    source = images_at + top // down * image_step
    source += top % down * patch * row_step + row[:, None] * row_step
    source += (column * column_step + colour * colour_step)[None, :]
    result = tl.load(source, mask=inside, other=0).to(tl.float32) * scale + offset
    target = result_at + top * patch * length + row[:, None] * line
    target += (place // line * (patch * line) + place % line)[None, :]
    tl.store(target, result.to(result_at.dtype.element_ty), mask=inside)


# Numbers of rows differ from call to call: specialised, they would be compiled again and again.


@triton.jit(do_not_specialize=["count"])
def _norm(
    rows_at, product_at, deferred_at, result_at, count,
    width: tl.constexpr, span: tl.constexpr, rows: tl.constexpr,
    adds: tl.constexpr, eps: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    column = tl.arange(0, span)
    inside = (row < count)[:, None] & (column < width)[None, :]
    place = row[:, None] * width + column[None, :]
    values = tl.load(rows_at + place, mask=inside, other=0.0).to(tl.float32)
    if adds:
        values += tl.load(product_at + place, mask=inside, other=0.0).to(tl.float32)
        stored = values.to(rows_at.dtype.element_ty)
        tl.store(rows_at + place, stored, mask=inside)
        values = stored.to(tl.float32)
    values += tl.load(deferred_at + column, mask=column < width, other=0.0)[None, :]
    scale = tl.rsqrt(tl.sum(values * values, axis=1) / width + eps)
    result = (values * scale[:, None]).to(result_at.dtype.element_ty)
    tl.store(result_at + place, result, mask=inside)


@triton.jit(do_not_specialize=["count"])
def _geglu(up_at, result_at, count, hidden: tl.constexpr, span: tl.constexpr, rows: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    column = tl.arange(0, span)
    inside = (row < count)[:, None] & (column < hidden)[None, :]
    place = row[:, None] * (2 * hidden) + column[None, :]
    gate = tl.load(up_at + place, mask=inside, other=0.0).to(tl.float32)
    act = tl.load(up_at + place + hidden, mask=inside, other=0.0).to(tl.float32)
    # act * (1 + tanh(t)) / 2 is act * sigmoid(2 t), for t = sqrt(2 / pi) (act + 0.044715 act^3).
    twice = 1.5957691216057308 * act * (1.0 + 0.044715 * act * act)
    result = gate * act / (1.0 + tl.exp(-twice))
    target = row[:, None] * hidden + column[None, :]
    tl.store(result_at + target, result.to(result_at.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count", "start", "across"])
def _paint(
    made_at, encoded_at, constant_at, result_at, finite_at, count, start, across,
    width: tl.constexpr, patches: tl.constexpr, pixels: tl.constexpr, side: tl.constexpr,
    lanes: tl.constexpr, colours: tl.constexpr, levels: tl.constexpr, floor: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = made_at.dtype.element_ty
    first = tl.program_id(0).to(tl.int64) * patches
    block = tl.program_id(1)
    blocks = tl.num_programs(1)
    # The columns of the first matrices of all patches side by side: one product for them.
    column = tl.arange(0, patches * width)
    inner = tl.arange(0, width)
    patch = first + column // width
    matrices = made_at + patch * (width * width + colours * width)
    inside = patch < count
    place = matrices[:, None] + (column % width)[:, None] * width + inner[None, :]
    columns = tl.load(place, mask=inside[:, None], other=0.0)
    wide = columns.to(tl.float32)
    squares = tl.sum(wide * wide, axis=1)
    finite = squares < float("inf")
    pixel = block * pixels + tl.arange(0, pixels)
    encoded = tl.load(encoded_at + pixel[:, None] * width + inner[None, :])
    field = tl.dot(encoded, tl.trans(columns), input_precision="ieee")
    field = field * (1.0 / tl.maximum(tl.sqrt(squares), floor))[None, :]
    field = (field / (1.0 + tl.exp(-field))).to(dtype)
    field = tl.where(finite[None, :], field, 0.0).to(dtype)
    # The second matrices, of few columns each, as one with zeros wherever patches differ. What is
    # not finite must not meet those zeros: it goes on in its own patch alone.
    lane = tl.arange(0, patches * lanes)
    colour = lane % lanes
    same = (column // width)[:, None] == (lane // lanes)[None, :]
    used = same & inside[:, None] & (colour < colours)[None, :]
    place = matrices[:, None] + width * width + colour[None, :] * width + (column % width)[:, None]
    second = tl.load(place, mask=used, other=0.0)
    second = tl.where(used & (finite == 0)[:, None], float("nan"), second).to(dtype)
    result = tl.dot(field, second, input_precision="ieee")
    owner = first + lane // lanes
    there = (owner < count) & (colour < colours)
    place = constant_at + colour[None, :] * (blocks * pixels) + pixel[:, None]
    result += tl.load(place, mask=there[None, :], other=0.0).to(tl.float32)
    good = tl.min((tl.abs(result) < float("inf")).to(tl.int32), axis=0)
    place = finite_at + (owner * blocks + block) * colours + colour
    tl.store(place, good.to(tl.uint8), mask=there)
    index = owner + start
    patch_row = index // across  # of all images, which lie one below another
    corner = (patch_row * side * across + index % across) * side
    inner = pixel // side * (side * across) + pixel % side
    place = result_at + (corner[None, :] + inner[:, None]) * colours + colour[None, :]
    if levels:
        bounded = tl.minimum(tl.maximum((result + 1.0) * 127.5, 0.0), 255.0)
        # Adding and taking 1.5 * 2^23 rounds to nearest, halves to even, as torch does.
        rounded = (bounded + 12582912.0) - 12582912.0
        tl.store(place, rounded.to(tl.int32).to(tl.uint8), mask=there[None, :])
    else:
        tl.store(place, result.to(dtype), mask=there[None, :])

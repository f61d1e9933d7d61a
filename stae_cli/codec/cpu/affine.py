"""Affine layers on token rows, fused with what follows them where oneDNN offers it.

On x86 CPUs torch's graph compiler hands such layers to oneDNN, with weights packed once and the
activation applied while the product is still in cache. The same operators are used here directly,
which needs no compiler. Everywhere else each step is a plain torch function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

Gelu = Literal["none", "tanh"]  # torch's names: exact, or the tanh approximation

PACKED_FOR_ROWS = 512  # a hint to oneDNN; the function is the same for any number of rows
X86 = ("AVX2", "AVX512")
ROWS_IN_CACHE = 64
SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
CUBIC = 0.044715
_LINEAR = torch.tensor(2 * SQRT_2_OVER_PI, dtype=torch.float32, device="cpu")
PROBE_ERRORS = {torch.float32: 1e-3, torch.bfloat16: 0.3}  # of numbers up to 18


@dataclass(frozen=True)
class Affine:
    """x @ weight.T + bias on rows (N, inputs) -> (N, outputs)."""

    weight: Tensor  # (outputs, inputs); where packed, in oneDNN's own layout
    bias: Tensor  # (outputs,)
    packed: bool = False

    def __call__(self, rows: Tensor) -> Tensor:
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")
        return linear(rows, self.weight, self.bias)

    def gelu(self, rows: Tensor, approximate: Gelu) -> Tensor:
        """GELU of the layer's output."""
        if self.packed and slow_inside(rows.dtype):
            return gelu_(self(rows), approximate)
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(
                rows, self.weight, self.bias, "gelu", [], approximate
            )
        return gelu(linear(rows, self.weight, self.bias), approximate=approximate)

    def times(self, rows: Tensor, other: Tensor) -> Tensor:
        """The layer's output times `other` (N, outputs)."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise.binary(
                rows, other, self.weight, self.bias, "mul"
            )
        return linear(rows, self.weight, self.bias).mul_(other)

    def plus(self, rows: Tensor, other: Tensor) -> Tensor:
        """The layer's output plus `other` (N, outputs)."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise.binary(
                rows, other, self.weight, self.bias, "add"
            )
        return linear(rows, self.weight, self.bias).add_(other)


@dataclass(frozen=True)
class Placement:
    """Where folded float64 weights end up, and in which dtype."""

    device: torch.device
    dtype: torch.dtype

    def affine(self, weight: Tensor, bias: Tensor) -> Affine:
        """A float64 weight (outputs, inputs) and bias (outputs,) as a layer, packed if possible."""
        layer = self.unpacked(weight, bias)
        if self.device.type != "cpu" or not can_pack(self.dtype):
            return layer
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight, PACKED_FOR_ROWS)
        return Affine(packed, layer.bias, True)

    def unpacked(self, weight: Tensor, bias: Tensor) -> Affine:
        """The same layer with its weight (outputs, inputs) as it is."""
        return Affine(self.put(weight), self.put(bias))

    def put(self, tensor: Tensor) -> Tensor:
        """A copy on the device, in the dtype."""
        return tensor.to(self.device, self.dtype, copy=True).contiguous()

    def put_wide(self, tensor: Tensor) -> Tensor:
        """A copy on the device, in float32."""
        return tensor.to(self.device, torch.float32, copy=True).contiguous()


def gelu_(values: Tensor, approximate: Gelu) -> Tensor:
    """GELU of (N, width) in place, a few rows at a time: they stay in the nearest cache.

    With "tanh" as x * sigmoid(2u), where u is what tanh would be taken of: the same function, for
    which torch's exponential is three times as fast as its tanh.
    """
    for some in values.split(ROWS_IN_CACHE):
        if approximate == "none":
            torch.ops.aten.gelu_(some)
            continue
        factor = torch.addcmul(_LINEAR, some, some, value=2 * SQRT_2_OVER_PI * CUBIC)
        some.mul_(factor.mul_(some).sigmoid_())
    return values


@lru_cache
def slow_inside(dtype: torch.dtype) -> bool:
    """Whether oneDNN's GELU inside a product takes longer than one behind it.

    Without AVX-512 its polynomials look up each coefficient in memory.
    """
    return dtype == torch.float32 and torch.backends.cpu.get_cpu_capability() == "AVX2"


@lru_cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch has oneDNN's fused layers for this CPU, and they compute what they say.

    They are no public interface, so they are tried once before they are trusted. In bfloat16 they
    are there for CPUs that multiply it; float16 is slow on all of them.
    """
    if dtype not in PROBE_ERRORS:
        return False
    if (
        torch.backends.cpu.get_cpu_capability() not in X86
        or not torch.backends.mkldnn.is_available()
    ):
        return False
    values = torch.linspace(-2, 2, 24 * 16).sin().to(dtype)
    rows, weight, bias = values[:128].view(8, 16), values.view(24, 16), values[:24]
    other = values[:192].view(8, 24)
    plain = Affine(weight, bias)
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        packed = Affine(torch.ops.mkldnn._reorder_linear_weight(weight.clone(), 8), bias, True)
        pairs = [
            (packed(rows), plain(rows)),
            (packed.gelu(rows, "none"), plain.gelu(rows, "none")),
            (packed.gelu(rows, "tanh"), plain.gelu(rows, "tanh")),
            (packed.times(rows, other), plain.times(rows, other)),
            (packed.plus(rows, other), plain.plus(rows, other)),
        ]
    except (AttributeError, RuntimeError, TypeError):  # another torch, another interface
        return False
    error = PROBE_ERRORS[dtype]
    return all(torch.allclose(fast, slow, rtol=0, atol=error) for fast, slow in pairs)


@lru_cache
def rows_are_alike(dtype: torch.dtype) -> bool:
    """Whether a row's product has the same bytes in few rows as in many, in layers as packed here.

    oneDNN's float32 kernels sum in the same order for any number of rows. Others choose another
    kernel, or another order, by that number. It is tried on the published network's sizes.
    """
    if dtype != torch.float32 or not can_pack(dtype):
        return False
    values = torch.linspace(-2000, 2000, 1024 * 512).sin()
    place = Placement(torch.device("cpu"), dtype)
    for inputs, outputs in ((512, 1024), (1024, 512)):
        layer = place.affine(values.view(outputs, inputs), values[:outputs])
        rows = values[: 512 * inputs].view(512, inputs)
        parts = torch.cat([layer(part) for part in rows.split((64, 192, 256))])
        if not torch.equal(layer(rows), parts):
            return False
    return True

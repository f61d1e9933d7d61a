"""Affine layers on token rows, fused with what follows them where oneDNN offers it.

On x86 CPUs torch's graph compiler hands such layers to oneDNN, with weights packed once and the
activation applied while the product is still in cache. The same operators are used here directly,
which needs no compiler. Everywhere else each step is a plain torch function.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

Gelu = Literal["none", "tanh"]  # torch's names: exact, or the tanh approximation

PACKED_FOR_ROWS = 512  # a hint to oneDNN; the function is the same for any number of rows
X86 = ("AVX2", "AVX512")
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

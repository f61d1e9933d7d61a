"""The machine's own speed: large matrix products as torch does them in a dtype."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stae_cli.benchmark.stopwatch import Stopwatch, WarmUp
from stae_cli.network.stupid_ae import SEED

Shape = tuple[int, int, int]  # (rows, inner, columns)

PROBE: Shape = (512, 512, 512)
LARGE: tuple[Shape, ...] = ((4096, 4096, 4096), (16384, 512, 2048))
LARGER: tuple[Shape, ...] = ((8192, 8192, 8192), (16384, 1024, 512))  # on CUDA as well
LONGEST = 4.0  # seconds; half precision on a CPU without it takes minutes for a large one


class Matmul:
    """One matrix product, warmed up."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        rows, inner, columns = self.shape = shape
        generator = torch.Generator(device).manual_seed(SEED)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(dtype)

        left, right = drawn(rows, inner), drawn(inner, columns)
        self._stopwatch = Stopwatch(device, left.__matmul__, [right])
        self._warm_up: WarmUp = self._stopwatch.warm_up()

    @property
    def key(self) -> tuple[str, Shape]:
        """What a round files its time under."""
        return "matmul", self.shape

    @property
    def flops(self) -> int:
        return 2 * math.prod(self.shape)

    def sample(self) -> float:
        """Seconds for one product."""
        return self._stopwatch.sample(self._warm_up.calls)


def large_matmuls(device: torch.device, dtype: torch.dtype) -> list[Matmul]:
    """Those large ones that take no longer than LONGEST, or PROBE alone.

    They hold what a device does best, and the network's own products at its usual number of rows.
    """
    large = LARGE + LARGER * (device.type == "cuda")
    probe = Matmul(PROBE, device, dtype)
    rate = probe.flops / probe.sample()
    feasible = [shape for shape in large if 2 * math.prod(shape) / rate < LONGEST]
    return [Matmul(shape, device, dtype) for shape in feasible] or [probe]

"""What a benchmark found, with its units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from stae_cli.benchmark.machine import Machine

OURS = "stae"


@dataclass(frozen=True)
class Case:
    """What one call of a network is given: `batch` pictures of `width` x `height` pixels."""

    width: int
    height: int
    batch: int = 1

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, batch {self.batch}"


@dataclass(frozen=True)
class Spread:
    """A median over rounds with the 10th and the 90th percentile."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        p10, median, p90 = np.quantile(values, (0.1, 0.5, 0.9))
        return cls(float(median), float(p10), float(p90))


@dataclass(frozen=True)
class Timing:
    """One network's encoder or decoder in one case.

    `tflops` counts the operations of the network as defined, whatever its form really computes,
    per second in 10^12; `share` is that over the machine's own matrix product in the same round.
    `slowdown` is its time over the codec's in the same round. `memory_bytes` is what a call needs
    on the device beyond weights and inputs; None where torch does not tell.
    """

    network: str
    stage: str
    milliseconds: Spread
    images_per_second: Spread
    tflops: float
    share: Spread
    slowdown: Spread
    memory_bytes: int | None


@dataclass(frozen=True)
class MatmulRate:
    """What the machine did of one product (rows, inner, columns), in 10^12 operations a second."""

    shape: tuple[int, int, int]
    tflops: Spread


@dataclass(frozen=True)
class CaseResult:
    """All networks in one case, timed in turn in the same `rounds`.

    `matmul` (rows, inner, columns) is the product that the machine did fastest in them, `matmuls`
    are all of them. `left_out` says of networks that could not be timed why.
    """

    case: Case
    rounds: int
    matmul: tuple[int, int, int]
    matmul_tflops: Spread
    timings: Sequence[Timing]
    left_out: Mapping[str, str] = field(default_factory=dict)
    matmuls: Sequence[MatmulRate] = ()


@dataclass(frozen=True)
class Report:
    """A whole benchmark."""

    machine: Machine
    architecture: str
    weights: str
    dtype: str
    unfused: str | None  # why a CUDA device did without Triton kernels
    host_peak_bytes: int | None
    results: Sequence[CaseResult]

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers."""
        return asdict(self)

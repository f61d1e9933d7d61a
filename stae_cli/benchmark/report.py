"""What a benchmark found, with its units."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stae_cli._version import __version__

OURS = "stae"


@dataclass(frozen=True)
class Machine:
    """Everything about a machine that a timing depends on; `cpu` with its vector extensions."""

    device: str
    accelerator: str | None
    cpu: str
    threads: int
    system: str
    python: str
    torch: str
    cuda: str | None
    stae: str


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
    on the device beyond weights and inputs; None where torch does not report it.
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
    """The rate of one matrix product (rows, inner, columns), in 10^12 operations a second."""

    shape: tuple[int, int, int]
    tflops: Spread


@dataclass(frozen=True)
class CaseResult:
    """All networks in one case, timed in turn in the same `rounds`.

    `matmul` (rows, inner, columns) is the machine's fastest product in them, `matmuls` are all of
    them. `left_out` gives the reason for each network that could not be timed.
    """

    case: Case
    rounds: int
    matmul: tuple[int, int, int]
    matmul_tflops: Spread
    timings: Sequence[Timing]
    left_out: Mapping[str, str] = field(default_factory=dict)
    matmuls: Sequence[MatmulRate] = ()

    @property
    def networks(self) -> list[str]:
        return list(dict.fromkeys(timing.network for timing in self.timings))

    @property
    def stages(self) -> list[str]:
        return list(dict.fromkeys(timing.stage for timing in self.timings))


@dataclass(frozen=True)
class Report:
    """A whole benchmark."""

    machine: Machine
    architecture: str
    weights: str
    dtype: str
    unfused: str | None  # why a CUDA device runs without Triton kernels
    host_peak_bytes: int | None  # of the process that the codec ran in
    results: Sequence[CaseResult]
    versions: Mapping[str, str] = field(default_factory=dict)  # of libraries beside torch

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers."""
        return asdict(self)


def describe_machine(device: torch.device) -> Machine:
    """The machine as torch sees it; `accelerator` is None when the device is the CPU."""
    return Machine(
        device=str(device),
        accelerator=_accelerator_name(device),
        cpu=f"{_cpu_name()} ({torch.backends.cpu.get_cpu_capability()})",
        threads=torch.get_num_threads(),
        system=platform.platform(),
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda if device.type == "cuda" else None,
        stae=__version__,
    )


def host_peak_bytes() -> int | None:
    """The most memory that the process has used so far; None on Windows, which does not say."""
    try:
        resource = import_module("resource")
    except ModuleNotFoundError:
        return None
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _accelerator_name(device: torch.device) -> str | None:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return None if device.type == "cpu" else device.type


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

"""What a benchmark ran on, and how much memory the process has used."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch

from stae_cli._version import __version__


@dataclass(frozen=True)
class Machine:
    """Everything about a machine that a timing depends on."""

    device: str
    accelerator: str | None
    cpu: str
    threads: int
    system: str
    python: str
    torch: str
    cuda: str | None
    stae: str


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
    """The most memory that the process has held so far; None on Windows, which does not say."""
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

"""The software and the card that a measurement depends on, and what of it is used."""

import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from agreement import FORMS, rows_of
from record import first_line

from stae_cli import StupidAE
from stae_cli.codec.cuda import selftest as trial

QUERY = ("name", "driver_version", "clocks.sm", "clocks.max.sm", "power.limit", "temperature.gpu")


def facts(model: StupidAE, device: torch.device, dtype: torch.dtype) -> dict:
    """By name; what cannot be found out says why."""
    found: dict[str, Callable[[], object]] = {
        "torch": lambda: torch.__version__,
        "triton": lambda: version("triton"),
        "cuda": lambda: torch.version.cuda,
        "cudnn": lambda: torch.backends.cudnn.version(),
        "gelu in the product's epilogue": lambda: trial.has_gelu_epilogue(device, dtype),
        "tensor cores for Triton": lambda: trial.has_tensor_cores(device, dtype),
        "unfused because": lambda: trial.why_unfused(device, dtype),
    }
    if device.type == "cuda":
        found |= {
            "card": lambda: torch.cuda.get_device_name(device),
            "multiprocessors": lambda: (
                torch.cuda.get_device_properties(device).multi_processor_count
            ),
            "memory": lambda: torch.cuda.get_device_properties(device).total_memory,
            "driver": driver,
            "state": state,
        }
    else:
        del found["unfused because"]  # the trial is for CUDA devices
    for name, make in FORMS.items():
        found[f"rows at once, {name}"] = lambda make=make: rows_of(make(model, device, dtype))
    return {name: told(find) for name, find in found.items()}


def told(find: Callable[[], object]) -> object:
    try:
        return find()
    except Exception as error:  # noqa: BLE001  # no fact is worth the others
        return f"unknown: {first_line(error)}"


def driver() -> str:
    """As the driver itself says, which needs no program."""
    return Path("/proc/driver/nvidia/version").read_text().splitlines()[0].strip()


def state() -> dict[str, str]:
    """What nvidia-smi says of the first card."""
    ran = subprocess.run(
        ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"],
        capture_output=True, text=True, check=True, timeout=20,
    )  # fmt: skip
    values = ran.stdout.splitlines()[0].split(",")
    return {name: value.strip() for name, value in zip(QUERY, values, strict=True)}

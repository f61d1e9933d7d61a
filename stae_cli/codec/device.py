"""The device that a codec runs on: its name, and what happens when its memory ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stae_cli.errors import DeviceError

KINDS = ("cpu", "cuda", "mps")

# Of errors that are not `torch.OutOfMemoryError`, since torch's allocator was not asked.
MESSAGES = (
    "out of memory",  # CUDA's own words, alone or through Triton; Metal's
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",  # cuDNN's
)


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps` as a device of this machine.

    Raises:
        DeviceError: the device is absent; there is no silent fall-back.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"unknown device `{name}`", "use cuda, cuda:N, mps or cpu") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise DeviceError(
            f"no device `{name}`: {found or 'no'} CUDA device{'s' * (found != 1)} visible",
            "use `--device cpu`, or check the driver and CUDA_VISIBLE_DEVICES",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("no device `mps`: torch finds no Metal here", "use `--device cpu`")
    if device.type not in KINDS:
        raise DeviceError(f"device `{name}` is not supported", "use cuda, cuda:N, mps or cpu")
    return device


def numbered(device: torch.device) -> torch.device:
    """The same device in every thread, whichever is the current one there."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def ran_out(error: BaseException) -> bool:
    """Whether an error says that a device has run out of memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(each in str(error) for each in MESSAGES)


def is_memory_error(error: BaseException) -> bool:
    """Whether a device or the machine has run out of memory; torch has no class for the latter."""
    if isinstance(error, MemoryError) or ran_out(error):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


@contextmanager
def memory_errors(device: torch.device) -> Iterator[None]:
    """Reports out-of-memory as an error of the device.

    Raises:
        DeviceError: the device has run out of memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not ran_out(error):
            raise
        raise too_little_memory(device, error) from error


def too_little_memory(device: torch.device, error: RuntimeError) -> DeviceError:
    """The error to raise, with the library's own message where that may mean something else."""
    words = "" if isinstance(error, torch.OutOfMemoryError) else f" ({_first_line(error)})"
    return DeviceError(
        f"device `{device}` has too little free memory{words}",
        "end what else runs on it, or use `--device cpu`",
    )


def _first_line(error: RuntimeError) -> str:
    return str(error).strip().partition("\n")[0]

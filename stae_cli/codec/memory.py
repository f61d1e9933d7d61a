"""The end of a device's memory: how torch and its libraries tell of it, and how stae does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stae_cli.errors import DeviceError

# What is no `torch.OutOfMemoryError`, since torch's allocator was not asked.
MESSAGES = (
    "out of memory",  # CUDA's own words, alone or through Triton; Metal's
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",  # cuDNN's, where none has room
)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that a device's memory has ended."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(each in str(error) for each in MESSAGES)


def is_memory_error(error: BaseException) -> bool:
    """Whether memory has ended, a device's or the machine's; torch has no kind for the latter."""
    if isinstance(error, MemoryError) or ran_out(error):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


@contextmanager
def memory_told(device: torch.device) -> Iterator[None]:
    """Tells of the end of the device's memory as users read it.

    Raises:
        DeviceError: it has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if not ran_out(error):
            raise
        raise too_little_memory(device, error) from error


def too_little_memory(device: torch.device, error: RuntimeError) -> DeviceError:
    """What to raise; with the library's words where these might mean something else."""
    words = "" if isinstance(error, torch.OutOfMemoryError) else f" ({_first_line(error)})"
    return DeviceError(
        f"device `{device}` has too little free memory{words}",
        "end what else runs on it, or use `--device cpu`",
    )


def _first_line(error: RuntimeError) -> str:
    return str(error).strip().partition("\n")[0]

"""The device that a codec runs on: its name, its memory, and torch's settings for arithmetic."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import backends

from stae_cli.errors import DeviceError

KINDS = ("cpu", "cuda", "mps")

# Of errors that are not `torch.OutOfMemoryError`, since torch's allocator was not asked.
MESSAGES = (
    "out of memory",  # CUDA's own words, alone or through Triton; Metal's
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",  # cuDNN's
)

INHERITED = "none"  # torch's name for a precision that is left to the setting above it
_MKLDNN: Any = backends.mkldnn
_CUDNN: Any = backends.cudnn


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


def dtype_name(dtype: torch.dtype) -> str:
    """What users call a dtype: `float16`, without torch's prefix."""
    return str(dtype).removeprefix("torch.")


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
    first_line = str(error).strip().partition("\n")[0]
    words = "" if isinstance(error, torch.OutOfMemoryError) else f" ({first_line})"
    return DeviceError(
        f"device `{device}` has too little free memory{words}",
        "end what else runs on it, or use `--device cpu`",
    )


@dataclass(frozen=True)
class _Setting:
    """An attribute of one of torch's backends, and the value without a shortcut."""

    owner: Any
    name: str
    plain: object
    above: Any = None  # the backend whose setting of the same name applies where none is made

    def set_plain(self) -> object:
        """Writes the plain value where another one applies; returns what `restore` takes."""
        value = getattr(self.owner, self.name)
        if value in (self.plain, INHERITED):
            return None
        inherited = self.above is not None and value == getattr(self.above, self.name)
        setattr(self.owner, self.name, self.plain)
        return INHERITED if inherited else value

    def restore(self, value: object) -> None:
        if value is not None:
            setattr(self.owner, self.name, value)


def _precision(owner: Any, above: Any) -> _Setting:
    return _Setting(owner, "fp32_precision", "ieee", above)


class _Settings:
    """The process's settings for one type of device: plain as long as any thread is inside."""

    def __init__(self, settings: Sequence[_Setting] = ()) -> None:
        self._settings = settings
        self._before: list[object] = []
        self._inside = 0
        self._lock = threading.Lock()

    def enter(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = [setting.set_plain() for setting in self._settings]
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                for setting, value in zip(self._settings, self._before, strict=True):
                    setting.restore(value)


# By these names alone, never by `set_float32_matmul_precision` or `allow_tf32`: torch refuses to
# read those once the caller has used these, and these follow those.
_SETTINGS = {
    "cpu": _Settings((_precision(_MKLDNN.matmul, _MKLDNN), _precision(_MKLDNN.conv, _MKLDNN))),
    "cuda": _Settings(
        (
            _precision(backends.cuda.matmul, _CUDNN),
            _precision(_CUDNN.conv, _CUDNN),
            _Setting(backends.cuda.matmul, "allow_fp16_accumulation", False),
            _Setting(backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False),
            _Setting(backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
            _Setting(_CUDNN, "benchmark", False),  # waits for the device at each new size
        )
    ),
    "mps": _Settings(),
}


@contextmanager
def plain_arithmetic(device: torch.device) -> Iterator[None]:
    """Turns off the caller's autocast and every reduced-precision shortcut, then restores them.

    Autocast is the thread's own. The other settings are the process's: the first thread inside
    turns them off, and the last one out restores what the first one found. What another thread
    sets meanwhile applies at once, and is lost then. Never hold it open across a `yield`: the
    caller of a generator would compute with these settings, and might never finish it.
    """
    settings = _SETTINGS[device.type]
    settings.enter()
    try:
        with _without_autocast(device.type):
            yield
    finally:
        settings.leave()


def _without_autocast(kind: str) -> AbstractContextManager[object]:
    """Asks first, which takes a tenth of the time."""
    if torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()

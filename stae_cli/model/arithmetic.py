"""Arithmetic settings: none of torch's shortcuts inside, and the caller's own again afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import backends

INHERITED = "none"  # what torch calls a precision that is left to the setting above it


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


_MKLDNN: Any = backends.mkldnn
_CUDNN: Any = backends.cudnn

# By these names alone, never by `set_float32_matmul_precision` or `allow_tf32`: torch refuses to
# read those once the caller has used these, and these follow those.
_SETTINGS = {
    "cpu": (
        _precision(_MKLDNN.matmul, _MKLDNN),
        _precision(_MKLDNN.conv, _MKLDNN),
    ),
    "cuda": (
        _precision(backends.cuda.matmul, _CUDNN),
        _precision(_CUDNN.conv, _CUDNN),
        _Setting(backends.cuda.matmul, "allow_fp16_accumulation", False),
        _Setting(backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False),
        _Setting(backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
        _Setting(_CUDNN, "benchmark", False),  # waits for the device at each new size
    ),
}


@contextmanager
def plain_arithmetic(device: torch.device) -> Iterator[None]:
    """Turns off the caller's autocast and every reduced-precision shortcut, then restores them."""
    settings = _SETTINGS.get(device.type, ())
    before = [setting.set_plain() for setting in settings]
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.restore(value)

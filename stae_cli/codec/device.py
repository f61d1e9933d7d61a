"""The device that a codec runs on, as users name it."""

from __future__ import annotations

import torch

from stae_cli.errors import DeviceError

KINDS = ("cpu", "cuda", "mps")


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps` as a device of this machine.

    Raises:
        DeviceError: it was asked for and is absent; there is no silent fall-back.
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

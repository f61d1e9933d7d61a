"""The kernels that encoding and decoding start, by the time that the device spends in them."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

CALLS = 3
COSTLIEST = 25
LONGEST_NAME = 300  # templates' arguments come without end


def costliest(device: torch.device, call: Callable[[], object]) -> dict:
    """Of CALLS calls: milliseconds of a call in all kernels, and those that take the most of it.

    On the CPU torch's operators stand for kernels.
    """
    on_cuda = device.type == "cuda"
    for _ in range(CALLS):  # what comes again is recorded
        call()
    _wait(device)
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_cuda]) as profiler:
        for _ in range(CALLS):
            call()
        _wait(device)
    kernels = sorted(
        _kernels(profiler.key_averages(), DeviceType.CUDA if on_cuda else DeviceType.CPU),
        key=lambda kernel: -kernel["microseconds"],
    )
    return {
        "kernel_milliseconds": sum(kernel["microseconds"] for kernel in kernels) / 1000,
        "started": sum(kernel["count"] for kernel in kernels),
        "kernels": kernels[:COSTLIEST],
    }


def _kernels(events: Iterable[Any], kind: DeviceType) -> list[dict]:
    """Microseconds and starts, each of one call."""
    return [
        {
            "name": event.key[:LONGEST_NAME],
            "microseconds": _own_time(event, kind) / CALLS,
            "count": event.count / CALLS,
        }
        for event in events
        if event.device_type == kind and _own_time(event, kind) > 0
    ]


def _own_time(event: Any, kind: DeviceType) -> float:
    if kind == DeviceType.CPU:
        return event.self_cpu_time_total
    return event.self_device_time_total


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

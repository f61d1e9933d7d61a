"""Timing calls on a device: synchronised on both sides, with a buffer of its own for each call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from time import perf_counter

import torch
from torch import Tensor

SHORTEST_SAMPLE = 0.05  # seconds; quicker calls are timed several at a time
MOST_CALLS = 1000
SLOW_CALL = 2.0  # seconds; one such is warm-up enough
LATER_CALLS = {"cuda": 2}  # of a warm-up, else one: there the second may record what the third does


@dataclass(frozen=True)
class WarmUp:
    """What the first calls showed: how many make up one sample, and the memory that one needs.

    The memory is that of the first call, beyond what was held before it (weights and inputs): a
    later one may replay a recording, whose memory is taken for good and counts no more.
    """

    calls: int
    memory_bytes: int | None


class Stopwatch:
    """Times a function of one tensor, which gets the next of its inputs at each call."""

    def __init__(
        self, device: torch.device, function: Callable[[Tensor], object], inputs: Sequence[Tensor]
    ) -> None:
        self._device, self._function, self._inputs = device, function, inputs
        self._turn = count()

    def warm_up(self) -> WarmUp:
        """Calls until caches and kernels are in place.

        The first call on CUDA compiles kernels, and tells nothing of the others.
        """
        once, memory = self._first_call()
        on_cuda = self._device.type == "cuda"
        if on_cuda or once < SLOW_CALL:
            later = [self.sample(1) for _ in range(LATER_CALLS.get(self._device.type, 1))]
            once = min(later) if on_cuda else min(once, *later)
        calls = min(math.ceil(SHORTEST_SAMPLE / once), MOST_CALLS)
        return WarmUp(calls, memory)

    def sample(self, calls: int) -> float:
        """Seconds per call, over `calls` of them back to back."""
        seconds = self._on_cuda(calls) if self._device.type == "cuda" else self._on_host(calls)
        return seconds / calls

    def _on_cuda(self, calls: int) -> float:
        with torch.cuda.device(self._device):  # whose stream the events are recorded on
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            self._call(calls)
            end.record()
            torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000

    def _on_host(self, calls: int) -> float:
        self._synchronise()
        start = perf_counter()
        self._call(calls)
        self._synchronise()
        return perf_counter() - start

    def _call(self, calls: int) -> None:
        for _ in range(calls):
            self._function(self._inputs[next(self._turn) % len(self._inputs)])

    def _synchronise(self) -> None:
        if self._device.type == "mps":
            torch.mps.synchronize()

    def _first_call(self) -> tuple[float, int | None]:
        """Its seconds and the bytes that it took; None where torch does not tell."""
        if self._device.type != "cuda":
            return self.sample(1), None
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        seconds = self.sample(1)
        return seconds, torch.cuda.max_memory_allocated(self._device) - before

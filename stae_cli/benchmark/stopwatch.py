"""Timing: calls on a device in shuffled rounds, beside the machine's own matrix products.

Calls are synchronised on both sides, and each gets a buffer of its own. A round times every task
once, in a new order, so that whatever else the machine does affects all of them alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from random import Random
from time import monotonic, perf_counter

import torch
from torch import Tensor

from stae_cli.codec.device import is_memory_error
from stae_cli.errors import StaeError
from stae_cli.network.stupid_ae import SEED

SHORTEST_SAMPLE = 0.05  # seconds; quicker calls are timed several at a time
MOST_CALLS = 1000
SLOW_CALL = 2.0  # seconds; one such call is warm-up enough
FEWEST_ROUNDS = 3

Key = Hashable
Round = Mapping[Key, float]  # seconds per call
Shape = tuple[int, int, int]  # (rows, inner, columns)

PROBE: Shape = (512, 512, 512)
LARGE: tuple[Shape, ...] = ((4096, 4096, 4096), (16384, 512, 2048))
LARGER: tuple[Shape, ...] = ((8192, 8192, 8192), (16384, 1024, 512))  # on CUDA as well
LONGEST = 4.0  # seconds; half precision on a CPU without it takes minutes for a large one


@dataclass(frozen=True)
class WarmUp:
    """What the first calls showed: how many calls make one sample, and the memory that one needs.

    The memory is that of the first call, beyond what was allocated before it (weights, inputs).
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

    def warm_up(self, *, compiles: bool = False) -> WarmUp:
        """Calls until caches and kernels are in place.

        Args:
            compiles: the first call compiles, as on CUDA it always does: its time says nothing
                about the others.
        """
        once, memory = self._first_call()
        compiles = compiles or self._device.type == "cuda"
        if compiles or once < SLOW_CALL:
            later = [self.sample(1) for _ in range(2 if compiles else 1)]
            once = min(later) if compiles else min(once, *later)
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
        """Its seconds and the bytes that it took; None where torch does not report them."""
        if self._device.type != "cuda":
            return self.sample(1), None
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        seconds = self.sample(1)
        return seconds, torch.cuda.max_memory_allocated(self._device) - before


def rounds_of(tasks: Mapping[Key, Callable[[], float]], seconds: float) -> list[Round]:
    """Rounds until the next one would end past the time given; at least FEWEST_ROUNDS."""
    order, keys = Random(SEED), list(tasks)  # noqa: S311  # an order, not a secret
    rounds: list[Round] = []
    start = monotonic()
    while len(rounds) < FEWEST_ROUNDS or (monotonic() - start) * (1 + 1 / len(rounds)) < seconds:
        order.shuffle(keys)
        rounds.append({key: tasks[key]() for key in keys})
    return rounds


@contextmanager
def memory_errors(case: object) -> Iterator[None]:
    """Turns running out of memory into an error that names the case.

    Raises:
        StaeError: memory ran out.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_memory_error(error):
            raise
        raise StaeError(
            f"out of memory at {case}", "give a smaller `--batch` or `--size`"
        ) from error


def matmul_key(shape: Shape) -> tuple[str, Shape]:
    """What a matrix product is called in a round."""
    return "matmul", shape


class Matmul:
    """One matrix product, warmed up."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        rows, inner, columns = self.shape = shape
        generator = torch.Generator(device).manual_seed(SEED)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(dtype)

        left, right = drawn(rows, inner), drawn(inner, columns)
        self._stopwatch = Stopwatch(device, left.__matmul__, [right])
        self._warm_up: WarmUp = self._stopwatch.warm_up()

    @property
    def flops(self) -> int:
        return 2 * math.prod(self.shape)

    def sample(self) -> float:
        """Seconds for one product."""
        return self._stopwatch.sample(self._warm_up.calls)


def large_shapes(device: torch.device) -> tuple[Shape, ...]:
    """Products of which a device does one at its best, and the network's own at its usual rows."""
    return LARGE + LARGER * (device.type == "cuda")


def matmuls_of(shapes: Sequence[Shape], device: torch.device, dtype: torch.dtype) -> list[Matmul]:
    """The products that take no longer than LONGEST, or else PROBE alone."""
    probe = Matmul(PROBE, device, dtype)
    rate = probe.flops / probe.sample()
    feasible = [shape for shape in shapes if 2 * math.prod(shape) / rate < LONGEST]
    return [Matmul(shape, device, dtype) for shape in feasible] or [probe]

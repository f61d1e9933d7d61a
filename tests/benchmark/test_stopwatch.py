"""The stopwatch: inputs take turns, quick calls are timed several at a time; and the matmuls."""

from __future__ import annotations

import pytest
import torch

from stae_cli.benchmark import stopwatch
from stae_cli.benchmark.stopwatch import Stopwatch, large_shapes, matmuls_of

CPU = torch.device("cpu")
SHAPES = ((32, 16, 8), (16, 16, 16))


@pytest.fixture
def seen() -> list[float]:
    return []


@pytest.fixture
def watch(seen: list[float]) -> Stopwatch:
    inputs = [torch.tensor(float(number)) for number in range(3)]
    return Stopwatch(CPU, lambda given: seen.append(given.item()), inputs)


def test_inputs_take_turns(watch: Stopwatch, seen: list[float]) -> None:
    watch.sample(2)
    watch.sample(2)
    assert seen == [0, 1, 2, 0]


def test_a_sample_is_the_time_of_one_call(
    watch: Stopwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter((10.0, 12.0))
    monkeypatch.setattr(stopwatch, "perf_counter", lambda: next(moments))
    assert watch.sample(4) == 0.5


@pytest.mark.parametrize(("once", "calls"), [(0.02, 3), (1.0, 1), (1e-9, stopwatch.MOST_CALLS)])
def test_quick_calls_are_timed_several_at_a_time(
    watch: Stopwatch, monkeypatch: pytest.MonkeyPatch, once: float, calls: int
) -> None:
    monkeypatch.setattr(watch, "_on_host", lambda calls: once * calls)
    assert watch.warm_up() == stopwatch.WarmUp(calls, None)


def test_a_slow_call_is_not_made_twice_to_warm_up(
    watch: Stopwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    monkeypatch.setattr(watch, "_on_host", lambda calls: made.append(calls) or 60.0)
    watch.warm_up()
    assert made == [1]


def test_a_slow_first_call_on_cuda_says_nothing_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch = Stopwatch(torch.device("cuda"), lambda given: given, [torch.zeros(1)])
    times = iter((9.0, *[0.01] * 100))
    monkeypatch.setattr(watch, "_on_cuda", lambda calls: next(times) * calls)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 0)
    assert watch.warm_up().calls == 5


def test_memory_is_that_of_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later one may find what it needs cached, and allocate less."""
    held, peak = 1000, 0
    taken = iter((500, 20, 20))

    def call(_given: torch.Tensor) -> None:
        nonlocal peak
        peak = max(peak, held + next(taken))

    def reset(_device: torch.device) -> None:
        nonlocal peak
        peak = held

    watch = Stopwatch(torch.device("cuda"), call, [torch.zeros(1)])
    monkeypatch.setattr(watch, "_on_cuda", lambda calls: watch._call(calls) or 0.1)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: held)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: peak)
    assert watch.warm_up() == stopwatch.WarmUp(1, 500)
    assert next(taken, None) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_of_a_call_on_a_device() -> None:
    device = torch.device("cuda")
    inputs = [torch.zeros(1 << 20, device=device)]
    watch = Stopwatch(device, lambda given: given + 1, inputs)
    memory = watch.warm_up().memory_bytes
    assert memory is not None
    assert 4 << 20 <= memory < 8 << 20


@pytest.fixture
def _small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "PROBE", (8, 8, 8))


@pytest.mark.usefixtures("_small_products")
def test_two_operations_per_multiply_add() -> None:
    found = matmuls_of(SHAPES, CPU, torch.float32)
    assert [each.shape for each in found] == list(SHAPES)
    assert [each.flops for each in found] == [2 * 32 * 16 * 8, 2 * 16**3]
    assert all(each.sample() > 0 for each in found)


@pytest.mark.usefixtures("_small_products")
def test_where_large_ones_take_too_long_the_probe_is_the_measure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stopwatch, "LONGEST", 0.0)
    assert [each.shape for each in matmuls_of(SHAPES, CPU, torch.float32)] == [(8, 8, 8)]


def test_cuda_devices_are_given_larger_ones_too() -> None:
    assert large_shapes(CPU) == ((4096, 4096, 4096), (16384, 512, 2048))
    assert set(large_shapes(torch.device("cuda"))) > {*large_shapes(CPU), (8192, 8192, 8192)}


def test_a_slow_first_call_that_compiles_says_nothing_of_the_others(
    watch: Stopwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter((60.0, 0.03, 0.01))
    monkeypatch.setattr(watch, "_on_host", lambda _calls: next(times))
    assert watch.warm_up(compiles=True).calls == 5

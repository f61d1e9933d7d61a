"""The machine's own speed is taken from large products, unless those would take minutes."""

from __future__ import annotations

import pytest
import torch

from stae_cli.benchmark import matmul
from stae_cli.benchmark.matmul import large_matmuls

CPU = torch.device("cpu")
SHAPES = ((32, 16, 8), (16, 16, 16))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "LARGE", SHAPES)
    monkeypatch.setattr(matmul, "PROBE", (8, 8, 8))


def test_two_operations_per_multiply_add() -> None:
    found = large_matmuls(CPU, torch.float32)
    assert [each.shape for each in found] == list(SHAPES)
    assert [each.flops for each in found] == [2 * 32 * 16 * 8, 2 * 16**3]
    assert all(each.sample() > 0 for each in found)


def test_where_large_ones_take_too_long_the_probe_is_the_measure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(matmul, "LONGEST", 0.0)
    assert [each.shape for each in large_matmuls(CPU, torch.float32)] == [(8, 8, 8)]


def test_cuda_devices_are_given_larger_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int, int]] = []

    class Product:
        flops = 1

        def __init__(self, shape: tuple[int, int, int], *_: object) -> None:
            made.append(shape)

        def sample(self) -> float:
            return 1e-12

    monkeypatch.setattr(matmul, "Matmul", Product)
    large_matmuls(torch.device("cuda"), torch.float16)
    assert made == [(8, 8, 8), *SHAPES, (8192, 8192, 8192), (16384, 1024, 512)]

"""Fixtures for tests of the codec."""

import pytest
import torch

from stae_cli.codec.device import plain_arithmetic
from tests.codec.interpreted import DEVICE


@pytest.fixture
def with_tensor_cores(monkeypatch):
    """As on a card, and for float32 too, which shows errors that half precision hides."""
    from stae_cli.codec.cuda import folding

    def has_tensor_cores(device, dtype):
        return device.type == "cuda" or dtype != torch.bfloat16  # the interpreter cannot multiply

    monkeypatch.setattr(folding, "has_tensor_cores", has_tensor_cores)
    monkeypatch.delenv("STAE_TRITON", raising=False)
    with plain_arithmetic(DEVICE):
        yield


@pytest.fixture
def large_blocks(monkeypatch):
    """Fewer programs, since the interpreter takes its time for each, however much it computes."""
    from stae_cli.codec.cuda import kernels

    if DEVICE.type == "cpu":
        monkeypatch.setattr(kernels, "VALUES", 1 << 15)

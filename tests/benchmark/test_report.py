"""The machine's description is complete on every system."""

from __future__ import annotations

import sys

import pytest
import torch

from stae_cli import __version__
from stae_cli.benchmark.report import describe_machine, host_peak_bytes


def test_the_machine_is_described() -> None:
    machine = describe_machine(torch.device("cpu"))
    assert (machine.device, machine.accelerator, machine.cuda) == ("cpu", None, None)
    assert machine.stae == __version__
    assert machine.torch == torch.__version__
    assert machine.threads >= 1
    assert len(machine.cpu) > 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say")
def test_peak_memory_is_in_bytes() -> None:
    peak = host_peak_bytes()
    assert peak is not None
    assert 50e6 < peak < 1e12  # torch alone takes more than 50 MB


def test_a_system_that_does_not_tell_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert host_peak_bytes() is None

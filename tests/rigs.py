"""Rigs in the test's own process, where its replacements of functions reach them."""

from __future__ import annotations

import pytest
import torch

from stae_cli.benchmark.rig import Rig
from stae_cli.network.stupid_ae import StupidAE


class RigHere(Rig):
    """Stands in for a `RigApart`."""

    def __init__(self, _name: str, model: StupidAE, dtype: torch.dtype) -> None:
        super().__init__(model, torch.device("cpu"), dtype)

    def end(self) -> None:
        """There is no process."""


def keep_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets networks share this process, and shortens what takes its time to be precise."""
    monkeypatch.setattr("stae_cli.benchmark.run.RigApart", RigHere)
    monkeypatch.setattr("stae_cli.benchmark.stopwatch.LARGE", ((64, 64, 64), (128, 32, 64)))
    monkeypatch.setattr("stae_cli.benchmark.stopwatch.SHORTEST_SAMPLE", 0.001)

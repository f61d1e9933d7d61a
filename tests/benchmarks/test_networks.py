"""Networks side by side: who cannot be loaded or fails is left out, the others are timed."""

import sys

import pytest

from stae_cli.benchmark.report import Case
from tests.benchmarks.scripts import script


@pytest.fixture
def networks(monkeypatch):
    monkeypatch.setattr("stae_cli.benchmark.stopwatch.LARGE", ((64, 64, 64),))
    monkeypatch.setattr("stae_cli.benchmark.stopwatch.SHORTEST_SAMPLE", 0.001)
    return script("networks")


def measured(networks, tiny, cases, against, seconds=lambda _left: 0.01):
    records = []
    result = networks.measure(
        cases, "cpu", against, seconds,
        weights=str(tiny), record=lambda name, found: records.append((name, found)),
    )  # fmt: skip
    assert records[-1] == ("networks-cpu", result)
    assert len(records) == len(cases)
    return result


def test_peers_that_cannot_be_loaded_are_left_out(networks, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    result = measured(networks, tiny, [Case(16, 16)], ["sdxl", "reference"])
    (case,) = result["results"]
    assert case["left_out"] == {"sdxl": "comparing with other networks needs diffusers"}
    assert {timing["network"] for timing in case["timings"]} == {"stae", "reference"}
    assert result["failures"] == {}


def test_a_case_that_fails_does_not_stop_the_next(networks, tiny, monkeypatch):
    real = networks.run

    def failing(model, cases, **options):
        if cases == [Case(8, 8)]:
            raise ValueError("a driver's own\nwords")
        return real(model, cases, **options)

    monkeypatch.setattr(networks, "run", failing)
    result = measured(networks, tiny, [Case(8, 8), Case(16, 16)], [])
    assert result["failures"] == {"8x8, batch 1": "a driver's own"}
    assert [one["case"]["width"] for one in result["results"]] == [16]


def test_nothing_measured_is_recorded_too(networks, tiny, monkeypatch):
    monkeypatch.setattr(networks, "run", None)
    result = measured(networks, tiny, [Case(8, 8)], [])
    assert result["results"] == []
    assert set(result["failures"]) == {"8x8, batch 1"}
    assert result["machine"]["device"] == "cpu"


def test_what_there_is_no_time_for_is_named(networks, tiny):
    result = measured(networks, tiny, [Case(8, 8)], [], seconds=lambda _left: 0.0)
    assert result["unstarted"] == ["8x8, batch 1"]

"""Networks side by side: those that cannot be loaded or fail are left out, the others are timed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import networks
from stae_cli.benchmark.report import Case
from tests.rigs import keep_here


@pytest.fixture
def measured(monkeypatch, tiny, tmp_path):
    """Times cases with little ado; returns the record and the exit code."""
    keep_here(monkeypatch)

    def run(cases, against="reference"):
        small = ("--cases", cases, "--seconds", "0", "--weights", str(tiny))
        with pytest.raises(SystemExit) as ended:
            networks.main([*small, "--against", against, "--results", str(tmp_path / "results")])
        return json.loads(
            (tmp_path / "results" / "networks-cpu.json").read_text()
        ), ended.value.code

    return run


def test_a_record_says_what_it_was_measured_on(measured):
    found, code = measured("16:1,8:2")
    assert code == 0
    assert found["machine"]["device"] == "cpu"
    assert found["machine"]["cpu"].endswith(")")  # with its vector extensions
    assert {"commit", "dtype", "weights", "failures"} < set(found)
    assert [one["case"] for one in found["results"]] == [
        {"width": 16, "height": 16, "batch": 1},
        {"width": 8, "height": 8, "batch": 2},
    ]
    for one in found["results"]:
        assert {timing["network"] for timing in one["timings"]} == {"stae", "reference"}
        for timing in one["timings"]:
            assert set(timing["milliseconds"]) == {"median", "p10", "p90"}


def test_peers_that_cannot_be_loaded_are_left_out(measured, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    found, code = measured("16:1", "sdxl,reference")
    (case,) = found["results"]
    assert case["left_out"] == {"sdxl": "comparing with other networks needs diffusers"}
    assert {timing["network"] for timing in case["timings"]} == {"stae", "reference"}
    assert (code, found["failures"]) == (0, {})


def test_a_case_that_fails_does_not_stop_the_next(measured, monkeypatch):
    real = networks.run

    def failing(model, cases, **options):
        if cases == [Case(8, 8)]:
            raise ValueError("a driver's own\nwords")
        return real(model, cases, **options)

    monkeypatch.setattr(networks, "run", failing)
    found, code = measured("8:1,16:1")
    assert (code, found["failures"]) == (1, {"8x8, batch 1": "a driver's own"})
    assert [one["case"]["width"] for one in found["results"]] == [16]


def test_nothing_measured_is_recorded_too(measured, monkeypatch):
    monkeypatch.setattr(networks, "run", None)
    found, code = measured("8:1")
    assert (code, found["results"]) == (1, [])
    assert set(found["failures"]) == {"8x8, batch 1"}
    assert found["machine"]["device"] == "cpu"


def test_without_avx512_it_runs_in_a_process_that_is_told_so(monkeypatch, tmp_path):
    ran = []

    def noted(command, *, env, **_):
        ran.append((command[3:], {name: env[name] for name in networks.AVX2}))
        assert env["TORCHINDUCTOR_CACHE_DIR"] != os.environ.get("TORCHINDUCTOR_CACHE_DIR")
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", noted)
    arguments = ["--avx2", "--cases", "8:1", "--results", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        networks.main(arguments)
    assert ended.value.code == 3
    assert ran == [(arguments, networks.AVX2)]


def test_records_without_avx512_say_who_used_it(monkeypatch):
    assert networks.beyond_limits(["onnxruntime"]) == {}
    for name, value in networks.AVX2.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "flags : avx2 avx512f")
    monkeypatch.setattr(Path, "exists", lambda _: True)
    assert set(networks.beyond_limits(["reference", "onnxruntime"])) == {"onnxruntime"}
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "flags : avx2")
    assert networks.beyond_limits(["onnxruntime"]) == {}

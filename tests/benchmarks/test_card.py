"""The script for a card runs to its end wherever it is: without git, without peers, in phases."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import card
from benchmarks.record import ROOT

PHASES = ("agreement", "networks", "path")
SMALL_MATMULS = """
from stae_cli.benchmark import stopwatch
stopwatch.LARGE, stopwatch.SHORTEST_SAMPLE = ((64, 64, 64),), 0.001
"""


@pytest.fixture
def run_card(tmp_path):
    """Without git, with a diffusers that cannot be imported, and with little to multiply."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "diffusers.py").write_text("raise ImportError('broken')\n")
    (broken / "sitecustomize.py").write_text(SMALL_MATMULS)
    path = os.pathsep.join(map(str, (broken, ROOT)))
    environment = os.environ | {"PATH": str(broken), "PYTHONPATH": path}

    def run(weights, *more):
        quick = ("--device", "cpu", "--quick", "--weights", weights, "--results", tmp_path / "out")
        command = [sys.executable, "-m", "benchmarks.card", *quick, *more]
        how = {"capture_output": True, "text": True, "env": environment, "cwd": ROOT}
        return subprocess.run([str(word) for word in command], check=False, **how)

    return run


def test_it_runs_to_its_end_and_prints_its_tables(run_card, tiny, tmp_path):
    ran = run_card(tiny)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = {name: json.loads((tmp_path / f"out/{name}-cpu.json").read_text()) for name in PHASES}
    assert {result["commit"] for result in found.values()} == {"unknown"}
    assert [result["failures"] for result in found.values()] == [{}] * len(PHASES)
    assert set(found["agreement"]["forms"]) == {"float32, stae", "bfloat16, stae"}
    exact, half = found["agreement"]["forms"].values()
    assert exact["latents"]["largest"] < 1e-4 < half["latents"]["largest"]
    assert exact["same bytes alone"]
    assert exact["time"]["encode"] == {"median": 1, "p10": 1, "p90": 1}
    assert half["time"]["decode"]["median"] > 0
    (case,) = found["networks"]["results"]
    assert {one["network"] for one in case["timings"]} == {"stae", "unfused", "reference"}
    assert len(found["path"]["runs"][0]["paths"]) == 2
    for words in ("## Forms of the codec", "## The network", "## The path", "| bfloat16, stae |"):
        assert words in ran.stdout


def test_a_phase_that_fails_does_not_stop_the_next(run_card, tmp_path):
    ran = run_card(tmp_path / "absent.safetensors", "--phases", "agreement,networks")
    assert ran.returncode == 1
    for name in ("agreement", "networks"):
        assert f"{name} ended with 1" in ran.stderr


def test_a_phase_that_takes_too_long_is_ended(tiny, tmp_path):
    more = ("--weights", str(tiny), "--results", str(tmp_path), "--phases", "path")
    with pytest.raises(SystemExit, match="path was ended after 0 minutes"):
        card.main(["--device", "cpu", "--quick", "--minutes", "0", *more])


def test_an_unknown_phase_is_a_mistake(capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        card.main(["--results", str(tmp_path), "--phases", "other"])
    assert caught.value.code == 2
    assert "no phase 'other'" in capsys.readouterr().err

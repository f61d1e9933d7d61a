"""The script for a card runs to its end wherever it is: without git, without peers, in phases."""

import json
import os
import subprocess
import sys
from time import monotonic

import pytest

from tests.benchmarks.scripts import FOLDER, script

PHASES = ("numbers", "stages", "networks", "path")


@pytest.fixture
def environment(tmp_path):
    """Without git, and with a diffusers that cannot be imported."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "diffusers.py").write_text("raise ImportError('broken')\n")
    return os.environ | {"PATH": str(broken), "PYTHONPATH": str(broken)}


def run_card(environment, weights, out, *more):
    quick = ("--device", "cpu", "--quick", "--weights", weights, "--out", out)
    command = [sys.executable, FOLDER / "card.py", *quick, *more]
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True, text=True, check=False, env=environment, cwd=out.parent,
    )  # fmt: skip


def test_it_runs_to_its_end_and_tells_all_in_a_table(environment, tiny, tmp_path):
    out = tmp_path / "out"
    ran = run_card(environment, tiny, out, "--phases", ",".join(PHASES))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = {name: json.loads((out / f"{name}-cpu.json").read_text()) for name in PHASES}
    assert {result["commit"] for result in found.values()} == {"unknown"}
    assert [result["failures"] for result in found.values()] == [{}] * len(PHASES)
    halves = {f"bfloat16, {form}" for form in ("stae", "unfused", "products")}
    assert set(found["numbers"]["numbers"]) == {*halves, "float32, stae", "float32, unfused"}
    for part in ("software", "ceilings", "kernels", "chunks", "pictures", "latency"):
        assert found["stages"][part], part
    (case,) = found["networks"]["results"]
    assert "diffusers" in case["left_out"]["taesd"]
    assert {one["network"] for one in case["timings"]} == {"stae", "unfused", "reference"}
    assert len(found["path"]["runs"][0]["paths"]) == 2
    text = (out / "card.txt").read_text()
    assert ran.stdout.endswith(text + "\n")
    assert len(text) < 10_000
    for words in ("== numbers (unknown)", "same bytes", "copy: ", "-- stae encode: ", "left out"):
        assert words in text


def test_a_phase_that_dies_does_not_stop_the_next(environment, tmp_path):
    out, absent = tmp_path / "out", tmp_path / "absent.safetensors"
    more = ("--phases", "numbers,networks", "--commit", "abc")
    ran = run_card(environment, absent, out, *more)
    assert ran.returncode == 1
    for name in ("numbers", "networks"):
        result = json.loads((out / f"{name}-cpu.json").read_text())
        assert result["commit"] == "abc"
        assert "absent.safetensors" in result["failures"]["the phase"]
    assert ran.stdout.count("FAILED the phase: it ended with 1: ") == 2


def test_without_time_nothing_begins(environment, tiny, tmp_path):
    out = tmp_path / "out"
    ran = run_card(environment, tiny, out, "--phases", "numbers,path", "--minutes", "0.1")
    assert ran.returncode == 1
    assert ran.stdout.count("FAILED the phase: no time was left") == 2


def test_a_phase_is_ended_with_all_that_it_started(tmp_path, monkeypatch):
    """Whatever still ran would hold the pipe on which its last words are awaited."""
    sleep = "import time; time.sleep(120)"
    (tmp_path / "forever.py").write_text(
        f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {sleep!r}])\n{sleep}\n"
    )
    card = script("card")
    monkeypatch.setattr(card, "HERE", tmp_path)
    monkeypatch.setattr(card, "ENDING", 60)
    given = card.argparse.Namespace(
        quick=False, device="cpu", weights="none", out=tmp_path, commit=None
    )
    start = monotonic()
    assert card.run(card.Phase("forever.py", 0, (), ()), given, 3) == "it was ended after 3 s"
    assert monotonic() - start < 50


def test_an_unknown_phase_is_a_mistake(environment, tiny, tmp_path):
    ran = run_card(environment, tiny, tmp_path / "out", "--phases", "numbers,other")
    assert ran.returncode == 2
    assert "no phase 'other'" in ran.stderr

"""Commands that draw charts: what they write and refuse, and how they do without matplotlib."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.pictures import write_photos

ROOT = Path(__file__).parents[2]
WITHOUT = (
    "import sys; sys.modules['matplotlib'] = None\n"
    "from stae_cli.cli.main import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos") / "photos")


def without_matplotlib(*words):
    command = [sys.executable, "-c", WITHOUT, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def assert_names_the_extra(ran):
    assert ran.returncode == 1, ran.stderr
    assert "error: charts need matplotlib" in ran.stderr
    assert "hint: run `pip install 'stae[plot]'`" in ran.stderr
    assert ran.stdout == ""


def test_bench_without_matplotlib_ends_before_it_measures(tiny, tmp_path):
    words = ("bench", "--weights", tiny, "--device", "cpu", "--size", 16, "--seconds", 0)
    ran = without_matplotlib(*words, "--plot", tmp_path / "chart.png")
    assert_names_the_extra(ran)
    assert "timing" not in ran.stderr


def test_training_without_matplotlib_ends_without_a_curve(photos, tiny, tmp_path):
    out = tmp_path / "new.safetensors"
    words = ("--from", tiny, "--steps", 2, "--batch", 2, "--crop", 16, "--device", "cpu")
    ran = without_matplotlib("train", photos, "--out", out, *words)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("there is no curve.png: charts need matplotlib") == 1
    assert "run `pip install 'stae[plot]'`" in ran.stderr
    assert out.exists()
    made = {path.name for path in (tmp_path / "new.training").iterdir()}
    assert made == {"log.jsonl", "samples.png"}

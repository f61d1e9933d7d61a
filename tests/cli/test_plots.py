"""Commands that draw charts: what they write and refuse, and how they do without matplotlib."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.svg import cells_of, texts_of

ROOT = Path(__file__).parents[2]
WITHOUT = (
    "import sys; sys.modules['matplotlib'] = None\n"
    "from stae_cli.cli.main import main; sys.exit(main(sys.argv[1:]))"
)


def without_matplotlib(*words):
    command = [sys.executable, "-c", WITHOUT, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def assert_names_the_extra(ran):
    assert ran.returncode == 1, ran.stderr
    assert "error: charts need matplotlib" in ran.stderr
    assert "hint: run `pip install 'stae[plot]'`" in ran.stderr
    assert ran.stdout == ""


def test_stats_draws_what_it_prints(stae, latents, tmp_path):
    ran = stae("stats", latents, "--plot", tmp_path / "chart.svg", "--json")
    assert ran.code == 0, ran.err
    found = ran.json
    assert len(cells_of(tmp_path / "chart.svg")) == len(found["mean"]) ** 2
    texts = " ".join(texts_of(tmp_path / "chart.svg"))
    assert f"{found['latents']} latents of {found['positions']:,} positions" in texts
    assert f"made with tiny.safetensors ({found['weights_sha256'][:12]})" in texts
    assert f"shift {found['shift']:.5f}, scale {found['scale']:.5f}" in texts


def test_stats_prints_the_same_with_and_without_a_chart(stae, latents, tmp_path):
    plain = stae("stats", latents)
    drawn = stae("stats", latents, "--plot", tmp_path / "chart.png")
    assert (drawn.code, drawn.out) == (0, plain.out)
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.format == "PNG"


def test_a_chart_of_damaged_latents_is_of_the_others(stae, latents, tmp_path):
    (latents / "cut.safetensors").write_bytes((latents / "p1.safetensors").read_bytes()[:-3])
    ran = stae("stats", latents, "--plot", tmp_path / "chart.svg")
    assert ran.code == 3
    assert any(text.startswith("9 latents") for text in texts_of(tmp_path / "chart.svg"))


@pytest.mark.parametrize(
    ("plot", "words"),
    [
        ("absent/chart.png", ["no folder `absent`"]),
        ("chart.pdf", ["does not end in .png or .svg"]),
    ],
)
def test_stats_refuses_a_target_before_it_reads(stae, plot, words):
    stae("stats", "nowhere", "--plot", plot).assert_fails(2, *words)


def test_stats_without_matplotlib_ends_before_it_reads(tmp_path):
    ran = without_matplotlib("stats", "nowhere", "--plot", tmp_path / "chart.png")
    assert_names_the_extra(ran)


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


def test_a_backend_that_does_not_exist_is_an_error_with_a_hint(latents, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "nonsense")
    command = [sys.executable, "-m", "stae_cli", "stats", latents, "--plot", tmp_path / "a.png"]
    ran = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 1
    assert "error: matplotlib does not load: " in ran.stderr
    assert "hint: correct or unset `MPLBACKEND`" in ran.stderr

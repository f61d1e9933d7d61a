"""Ablations: equally many pixels for each, and nothing is trained twice."""

import pytest
from PIL import Image

from stae_cli.training.recipe import Recipe
from tests.benchmarks.scripts import script
from tests.pictures import noise

BASE = "PCA start, AdamW, EMA"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    for number in range(4):
        Image.fromarray(noise(80, 72, seed=number)).save(folder / f"{number}.png")
    return folder


def command(photos, out, tiny, *more):
    small = ("--steps", "4", "--batch", "4", "--crop", "16", "--device", "cpu", "--like", tiny)
    return [str(w) for w in (photos, "--validate", photos, "--out", out, *small, *more)]


def test_all_runs_see_as_many_pixels():
    runs = script("ablation").variants(Recipe("pca", steps=300, batch=8, crop=64))
    pixels = {r.steps * r.batch * r.crop**2 for r in runs.values()}
    assert pixels == {300 * 8 * 64**2}
    assert len(set(runs.values())) == len(runs)


def test_a_table_that_a_second_call_prints_without_training(photos, tiny, tmp_path, capsys):
    runs = ("--only", BASE, "--only", "four times the batch")
    ablation = script("ablation")
    ablation.main(command(photos, tmp_path, tiny, *runs))
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()[2:]]
    assert [row[:3] for row in rows] == [
        [BASE, "4", "4, 16"],
        ["four times the batch", "1", "16, 16"],
    ]
    assert rows[0][5] == rows[1][5]  # dB before the first step
    assert (tmp_path / "table.md").read_text() == printed
    ablation.Run = None
    ablation.main(command(photos, tmp_path, tiny, *runs))
    assert capsys.readouterr().out == printed


def test_another_recipe_is_trained_anew(photos, tiny, tmp_path, capsys):
    for rate in ("1e-4", "2e-4"):
        script("ablation").main(
            command(photos, tmp_path, tiny, "--only", BASE, "--lr", rate, "--steps", "1")
        )
        assert f"| {float(rate):g} |" in capsys.readouterr().out


def test_a_run_that_fails_does_not_stop_the_others(photos, tiny, tmp_path, capsys):
    runs = ("--only", "twice the crop", "--only", BASE)
    script("ablation").main(command(photos, tmp_path, tiny, *runs, "--crop", "64"))
    captured = capsys.readouterr()
    assert "twice the crop: no photo" in captured.err
    assert BASE in captured.out
    assert "twice the crop" not in captured.out


def test_a_run_that_there_is_not(photos, tiny, tmp_path):
    with pytest.raises(SystemExit, match="no run nothing\nhint: there are PCA"):
        script("ablation").main(command(photos, tmp_path, tiny, "--only", "nothing"))

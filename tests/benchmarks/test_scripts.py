"""Every script answers `--help`, and those for files and training run to their end in little."""

import importlib
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from PIL import Image

from benchmarks import export, family, files, neighbours, overhead, pages
from benchmarks.record import ROOT
from benchmarks.report import HEAD
from stae_cli.network.architecture import PRESETS
from tests.browser import MISSING
from tests.pictures import noise, write_photos

SCRIPTS = re.findall(r"benchmarks\.(\w+)[^|]*\|", HEAD)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_on_the_page_answers_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}").main(["--help"])
    assert ended.value.code == 0
    assert f"usage: python -m benchmarks.{name} " in capsys.readouterr().out


def test_a_script_runs_as_a_module():
    command = [sys.executable, "-m", "benchmarks.report", "--help"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


def recorded(folder, name):
    found = json.loads((folder / f"{name}.json").read_text())
    assert found["commit"]
    assert found["machine"]["cpu"]
    return found


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say its peak memory")
def test_files(tiny, tmp_path):
    pytest.importorskip("isal")
    little = ("--quick", "--seconds", "0", "--weights", str(tiny))
    files.main([*little, "--results", str(tmp_path)])
    found = recorded(tmp_path, "files-cpu")
    assert found["reading"]["codec alone over stae"]["median"] > 0
    assert found["png writing"]["writer alone over stae"]["median"] > 0
    for command in ("encode", "decode"):
        assert found["mixed sizes"][command]["mixed over equal"]["median"] > 0
    assert len(found["memory"]) == 3
    assert min(found["memory"].values()) > 50


@pytest.mark.skipif(bool(MISSING), reason=MISSING or "")
def test_pages(stae, tmp_path, monkeypatch):
    photos = write_photos(tmp_path / "photos", 3)
    monkeypatch.setattr(pages, "stae", lambda *words: stae(*words, "--quiet"))  # in this process
    little = ("--pictures", "40", "--rounds", "1", "--seconds", "0.5")
    pages.main([str(photos), *little, "--results", str(tmp_path / "results")])
    found = recorded(tmp_path / "results", "pages-cpu")
    assert found["bytes"] > 40_000
    assert [one["name"] for one in found["windows"]] == ["desktop", "phone", "slow phone"]
    assert all(one["first_picture_ms"] > 0 for one in found["windows"])
    assert found["roundtrip"]["photos"] == 3
    assert found["roundtrip"]["ratio"] > 0


def test_overhead(tmp_path):
    overhead.main(["--quick", "--seconds", "0", "--results", str(tmp_path)])
    found = recorded(tmp_path, "overhead-cpu")
    pictures, floor = found["pictures"], found["floor"]
    assert [(one["side"], one["shard_size"]) for one in pictures] == [
        *((256, 0), (256, 256)),
        *((1024, 0), (1024, 256)),
    ]
    assert [one["side"] for one in floor] == [256, 1024]
    assert all(one["milliseconds"]["p10"] > 0 for one in pictures + floor)
    (several,) = found["processes"]
    assert several["processes"] == 2
    assert several["milliseconds"] > 0


def test_export(tmp_path):
    export.main(["--quick", "--rounds", "1", "--to", "webdataset", "--results", str(tmp_path)])
    (found,) = recorded(tmp_path, "export-cpu")["formats"]
    assert found["format"] == "webdataset"
    assert found["latents_per_second"] > 10
    assert 10e6 < found["peak_bytes"] < 10e9


def test_family(tmp_path, capsys, monkeypatch):
    """A second call prints the same without training or measuring again."""
    small = replace(PRESETS["f8c16-shuffle"], width=64)
    monkeypatch.setitem(PRESETS, small.name, small)
    monkeypatch.setattr("stae_cli.benchmark.stopwatch.LARGE", ((64, 64, 64),))
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        Image.fromarray(noise(64, 72, seed=number)).save(photos / f"{number}.png")
    command = [str(photos), "--score", str(photos), "--out", str(tmp_path / "runs")]
    command += ["--only", "f8c16-shuffle", "--steps", "1", "--batch", "1", "--crop", "32"]
    command += ["--side", "32", "--seconds", "0", "--results", str(tmp_path)]
    family.main(command)
    printed = capsys.readouterr().out
    assert "| f8c16-shuffle | 16x4x4 |" in printed
    (row,) = recorded(tmp_path, "family")["rows"]
    assert row["psnr"] > 10
    asked, real = [], family.stae_json
    monkeypatch.setattr(family, "stae_json", lambda *words: asked.append(words[0]) or real(*words))
    family.main(command)
    assert asked == ["flops"]
    assert capsys.readouterr().out == printed
    with pytest.raises(SystemExit, match="give another --out"):
        family.main([*command, "--lr", "1e-4"])


def test_neighbours(tmp_path, capsys):
    options = ["--side", "64", "--seconds", "0.01", "--rounds", "1", "--results", str(tmp_path)]
    neighbours.main([*options, "--neighbours", "0", "1"])
    found = recorded(tmp_path, "neighbours-cpu")["found"]
    assert len(found) == 2 * 2 * 2
    assert all(one["milliseconds"]["median"] > 0 for one in found)
    assert all(one["over alone"]["median"] == 1 for one in found if not one["neighbours"])
    assert "stae decode beside 1" in capsys.readouterr().out

"""`stae roundtrip` as users run it: pictures to look at, and the figures of just those."""

import json

import numpy as np
import pytest
from PIL import Image

from stae_cli.metrics import compare
from tests.pictures import noise, write_photos


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


def test_pictures_and_figures(stae, photos, tiny, tmp_path):
    out = tmp_path / "out"
    ran = stae("roundtrip", photos, out, "--weights", tiny)
    assert ran.code == 0, ran.err
    assert "worst first" in ran.out
    assert "overall: PSNR" in ran.out
    assert "compared 9" in ran.err
    figures = json.loads((out / "metrics.json").read_text())
    assert figures["weights"] == "tiny.safetensors"
    keys = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    assert [row["source"] for row in figures["images"]] == keys
    for row in figures["images"]:
        original = pixels_of(photos / row["source"])
        reconstruction = pixels_of(out / f"{row['source']}.reconstruction.png")
        assert original.shape == reconstruction.shape == (row["height"], row["width"], 3)
        score = compare(original, reconstruction)
        assert row["mse"] == pytest.approx(score.mse)
        assert row["psnr"] == pytest.approx(score.psnr)
        assert row["ssim"] == pytest.approx(score.ssim)
        assert (out / f"{row['source']}.comparison.png").exists()
    psnr = np.mean([row["psnr"] for row in figures["images"]])
    assert figures["overall"]["psnr"] == pytest.approx(psnr)
    sizes = np.array([row["width"] * row["height"] for row in figures["images"]])
    pooled = np.average([row["mse"] for row in figures["images"]], weights=sizes)
    assert figures["overall"]["mse"] == pytest.approx(pooled)


def test_the_worst_comes_first(stae, photos, tiny, tmp_path):
    ran = stae("roundtrip", photos, tmp_path / "out", "--weights", tiny)
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())["images"]
    worst, best = (f(figures, key=lambda row: row["mse"])["source"] for f in (max, min))
    assert ran.out.index(f" {worst} ") < ran.out.index(f" {best} ")


def test_reconstructions_are_those_of_encode_and_decode(stae, photos, tiny, tmp_path):
    stae("roundtrip", photos, tmp_path / "out", "--weights", tiny)
    stae("encode", photos, tmp_path / "latents", "--weights", tiny)
    stae("decode", tmp_path / "latents", tmp_path / "pictures", "--weights", tiny)
    for path in (tmp_path / "pictures").rglob("*.png"):
        key = path.relative_to(tmp_path / "pictures").as_posix()
        other = pixels_of(tmp_path / "out" / f"{key}.reconstruction.png")
        assert np.abs(pixels_of(path).astype(int) - other).max() <= 1


def test_it_always_recomputes(stae, photos, tiny, tmp_path):
    args = ["roundtrip", photos, tmp_path / "out", "--weights", tiny, "--json"]
    assert stae(*args).json["done"] == 9
    again = stae(*args).json
    assert (again["done"], again["skipped"]) == (9, 0)
    assert again["overall"]["pictures"] == 9


def test_size_options_and_one_pixel(stae, tiny, tmp_path):
    Image.fromarray(noise(100, 50)).save(tmp_path / "a.png")
    Image.fromarray(noise(1, 1)).save(tmp_path / "b.png")
    args = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "out", "--weights", tiny]
    ran = stae("roundtrip", *args, "--short-side", 20)
    assert ran.code == 0, ran.err
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())["images"]
    assert [(row["width"], row["height"]) for row in rows] == [(40, 20), (1, 1)]
    assert rows[1]["ssim"] is None


def test_bad_files_are_listed_and_same_stems_do_not_collide(stae, photos, tiny, tmp_path):
    Image.fromarray(noise(20, 20)).save(photos / "p0.jpg")
    (photos / "bad.jpg").write_bytes(b"bad")
    ran = stae("roundtrip", photos, tmp_path / "out", "--weights", tiny, "--json")
    assert (ran.code, ran.json["done"], ran.json["failed"]) == (3, 10, 1)
    assert "bad.jpg" in (tmp_path / "out" / "failures.jsonl").read_text()


def test_wrong_inputs(stae, photos, tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    stae("roundtrip", tmp_path / "empty", tmp_path / "o").assert_fails(1, "no inputs found")
    stae("encode", photos, tmp_path / "latents", "--weights", tiny)
    stae("roundtrip", tmp_path / "latents", tmp_path / "o").assert_fails(1, "no inputs found")
    stae("roundtrip", photos, photos / "o").assert_fails(2, "inside SOURCE")
    stae("roundtrip", tmp_path / "absent", tmp_path / "o").assert_fails(2, "absent")
    latent = tmp_path / "latents" / "p0.safetensors"
    ran = stae("roundtrip", latent, tmp_path / "o", "--weights", tiny)
    assert ran.code == 3
    assert "not an image" in ran.err

"""`stae decode` as users run it: the recorded size, the right weights, and nothing overwritten."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from stae_cli.checkpoints.checkpoint import load_checkpoint, read_checkpoint
from stae_cli.checkpoints.names import BUILTIN_FOLDER
from stae_cli.latents.format import write_latent
from stae_cli.latents.listing import read_latent
from tests.pictures import EXAMPLES, noise, write_photos


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(float)


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


@pytest.fixture
def latents(stae, photos, tiny, tmp_path):
    assert stae("encode", photos, tmp_path / "latents", "--weights", tiny).code == 0
    return tmp_path / "latents"


@pytest.mark.parametrize("format", ["png", "webp", "jpg"])
def test_pictures_have_the_recorded_size(stae, photos, latents, tiny, tmp_path, format):  # noqa: A002
    out = tmp_path / "out"
    ran = stae("decode", latents, out, "--weights", tiny, "--format", format)
    assert ran.code == 0, ran.err
    assert "decoded 9" in ran.err
    pictures = {p.relative_to(out).with_suffix("").as_posix(): p for p in out.rglob(f"*.{format}")}
    assert set(pictures) == {
        p.relative_to(photos).with_suffix("").as_posix() for p in photos.rglob("*.png")
    }
    for key, path in pictures.items():
        with Image.open(path) as decoded, Image.open(photos / f"{key}.png") as original:
            assert decoded.size == original.size


def test_pixels_are_the_networks_clamped_and_rounded(stae, latents, tiny, tmp_path):
    out = tmp_path / "out"
    stae("decode", latents / "p3.safetensors", out, "--weights", tiny)
    latent, info = read_latent(latents / "p3.safetensors")
    import torch

    model = read_checkpoint(tiny, name="").model()
    with torch.no_grad():
        image = model.decode(torch.from_numpy(latent).float()[None])[0]
    levels = ((image + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).numpy()
    decoded = pixels_of(out / "p3.png")
    expected = levels[: info.height, : info.width]
    assert np.abs(decoded - expected).max() <= 1  # where rounding could go either way
    assert (decoded == expected).mean() > 0.99


def test_a_finished_run_is_skipped_and_a_new_latent_is_not(stae, photos, latents, tiny, tmp_path):
    out = tmp_path / "out"
    stae("decode", latents, out, "--weights", tiny)
    assert stae("decode", latents, out, "--weights", tiny, "--json").json["skipped"] == 9
    Image.fromarray(noise(30, 30, seed=5)).save(photos / "p1.png")
    stae("encode", photos, latents, "--weights", tiny)
    again = stae("decode", latents, out, "--weights", tiny, "--json")
    assert (again.json["done"], again.json["skipped"]) == (1, 8)
    with Image.open(out / "p1.png") as picture:
        assert picture.size == (30, 30)


def test_the_photos_themselves_are_never_overwritten(stae, photos, latents, tiny):
    before = {path: path.read_bytes() for path in photos.rglob("*.png")}
    ran = stae("decode", latents, photos, "--weights", tiny)
    assert ran.code == 3
    assert "not a complete picture of stae" in ran.err
    assert all(path.read_bytes() == data for path, data in before.items())


def test_bad_latents_among_good_ones_are_listed(stae, latents, tiny, tmp_path):
    whole = (latents / "p0.safetensors").read_bytes()
    (latents / "cut.safetensors").write_bytes(whole[:-10])
    (latents / "empty.safetensors").write_bytes(b"")
    save_file({"x": np.ones(3)}, latents / "other.safetensors")
    nan, info = read_latent(latents / "p1.safetensors")
    nan = nan.copy()
    nan[0, 0, 0] = np.nan
    write_latent(latents / "nan.safetensors", nan, info)
    out = tmp_path / "out"
    ran = stae("decode", latents, out, "--weights", tiny, "--json")
    assert (ran.code, ran.json["done"], ran.json["failed"]) == (3, 9, 4)
    reasons = {
        row["source"]: row["reason"]
        for row in map(json.loads, (out / "failures.jsonl").read_text().splitlines())
    }
    assert reasons["cut.safetensors"] == "truncated"
    assert reasons["empty.safetensors"] == "empty file"
    assert "not a stae latent" in reasons["other.safetensors"]
    assert "NaN" in reasons["nan.safetensors"]


def test_two_latents_with_each_others_names_are_not_decoded(stae, latents, tiny, tmp_path):
    one, other = latents / "p0.safetensors", latents / "sub" / "p7.safetensors"
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    (latents / "p1.safetensors").rename(latents / "best.safetensors")
    ran = stae("decode", latents, tmp_path / "out", "--weights", tiny, "--json")
    assert (ran.code, ran.json["done"], ran.json["failed"]) == (3, 7, 2)
    assert (
        "p0.safetensors: its name is that of `p0.png`, but it was made from `sub/p7.png`" in ran.err
    )
    assert not (tmp_path / "out" / "p0.png").exists()
    assert (tmp_path / "out" / "best.png").exists()
    both = tmp_path / "both"
    both.mkdir()
    for path in (one, other):
        path.rename(both / path.name)
    ran = stae("decode", both, tmp_path / "none", "--weights", tiny)
    assert ran.code == 3, ran.err


def test_only_bad_latents(stae, tmp_path):
    (tmp_path / "latents").mkdir()
    (tmp_path / "latents" / "a.safetensors").write_bytes(b"x")
    ran = stae("decode", tmp_path / "latents", tmp_path / "out")
    assert ran.code == 3
    assert "a.safetensors" in ran.err


def test_another_checkpoint_is_refused(stae, latents, other_tiny, tmp_path):
    ran = stae("decode", latents, tmp_path / "out", "--weights", other_tiny)
    ran.assert_fails(1, "tiny.safetensors", "other.safetensors")
    assert list((tmp_path / "out").rglob("*.png")) == []


def test_latents_of_two_checkpoints_are_refused(stae, photos, latents, tiny, other_tiny, tmp_path):
    stae("encode", photos, tmp_path / "second", "--weights", other_tiny)
    (tmp_path / "second").rename(latents / "second")
    stae("decode", latents, tmp_path / "out", "--weights", tiny).assert_fails(1, "2 different")


def test_the_recorded_checkpoint_is_found_or_asked_for(stae, photos, latents, tmp_path):
    stae("decode", latents, tmp_path / "out").assert_fails(1, "tiny.safetensors", "--weights")
    stae("encode", photos / "p0.png", tmp_path / "builtin", "--weights", "builtin")
    ran = stae("decode", tmp_path / "builtin", tmp_path / "pictures")
    assert ran.code == 0, ran.err
    assert (tmp_path / "pictures" / "p0.png").exists()


def test_the_builtin_is_known_by_its_fingerprint_too(stae, photos, tmp_path):
    """A file of the same tensors is the same checkpoint, wherever it has gone since."""
    mine = tmp_path / "mine.pth"
    torch.save(dict(load_checkpoint("builtin").tensors), mine)
    out = tmp_path / "latents"
    assert stae("encode", photos / "p0.png", out, "--weights", mine).code == 0
    mine.unlink()
    assert stae("decode", out, tmp_path / "pictures").code == 0
    assert (tmp_path / "pictures" / "p0.png").exists()
    again = stae("verify", out, "--against", photos / "p0.png", "--reencode", 1, "--json")
    assert (again.code, [each["equal"] for each in again.json["reencoded"]]) == (0, [True])


def test_a_latent_cannot_name_a_file_to_open(stae, latents, tiny, tmp_path):
    """The name in a latent is a word to look up, not a path: its author may not be trusted."""
    from dataclasses import replace

    latent, info = read_latent(latents / "p0.safetensors")
    evil = tmp_path / "evil"
    evil.mkdir()
    write_latent(evil / "a.safetensors", latent, replace(info, weights=str(tiny)))
    stae("decode", evil, tmp_path / "out").assert_fails(1, "not available here", "--weights")


def test_a_record_of_other_settings_is_refused(stae, latents, tiny, tmp_path):
    out = tmp_path / "out"
    stae("decode", latents, out, "--weights", tiny)
    stae("decode", latents, out, "--weights", tiny, "--format", "jpg").assert_fails(1, "output")
    over = stae("decode", latents, out, "--weights", tiny, "--format", "jpg", "--overwrite")
    over.assert_fails(1, "would stay")
    assert list(out.rglob("*.jpg")) == []


def test_usage_errors(stae, latents, tiny, tmp_path):
    stae("decode", tmp_path / "absent", tmp_path / "out").assert_fails(2, "absent")
    stae("decode", latents, latents / "out").assert_fails(2, "inside SOURCE")
    stae("decode", latents, tmp_path / "out", "--format", "bmp").assert_fails(2)
    stae("decode", latents, tmp_path / "out", "--device", "gpu").assert_fails(2, "gpu")
    (tmp_path / "none").mkdir()
    stae("decode", tmp_path / "none", tmp_path / "out").assert_fails(1, "no inputs found")


def test_a_picture_too_long_for_its_format_is_listed(stae, tiny, tmp_path):
    Image.fromarray(noise(16500, 8)).save(tmp_path / "long.png")
    stae("encode", tmp_path / "long.png", tmp_path / "latents", "--weights", tiny)
    args = ["decode", tmp_path / "latents", tmp_path / "out", "--weights", tiny]
    ran = stae(*args, "--format", "webp")
    assert ran.code == 3
    assert "--format png" in ran.err


def test_latents_stored_in_float32_decode_too(stae, photos, tiny, tmp_path):
    stae("encode", photos, tmp_path / "l", "--weights", tiny, "--save-dtype", "float32")
    assert load_file(next((tmp_path / "l").rglob("*.safetensors")))["latents"].dtype == np.float32
    assert stae("decode", tmp_path / "l", tmp_path / "out", "--weights", tiny).code == 0


def test_large_latents_are_tiled_without_seams(stae, tiny, tmp_path):
    Image.fromarray(noise(300, 200)).save(tmp_path / "a.png")
    stae("encode", tmp_path / "a.png", tmp_path / "l", "--weights", tiny)
    args = ["decode", tmp_path / "l"]
    stae(*args, tmp_path / "whole", "--weights", tiny)
    stae(*args, tmp_path / "tiled", "--weights", tiny, "--batch-patches", 100)
    whole, tiled = (pixels_of(tmp_path / name / "a.png") for name in ("whole", "tiled"))
    assert np.abs(whole - tiled).max() <= 1


def card_figures():
    """PSNR of each kodak photo, as the built-in checkpoint's card gives it."""
    card = (BUILTIN_FOLDER / "README.md").read_text(encoding="utf-8")
    return {name: float(psnr) for name, psnr in re.findall(r"(kodim\d\d) (\d\d\.\d\d\d)", card)}


def test_the_builtin_checkpoint_is_as_good_as_its_card_says(stae, tmp_path):
    originals = sorted(EXAMPLES.glob("kodim*.png"))
    assert len(originals) >= 2
    figures = card_figures()
    assert len(figures) == 24
    stae("encode", *originals, tmp_path / "l", "--weights", "builtin")
    assert stae("decode", tmp_path / "l", tmp_path / "out").code == 0
    for original in originals:
        a = pixels_of(original)
        b = pixels_of(tmp_path / "out" / original.name)
        psnr = 10 * np.log10(255**2 / np.square(a - b).mean())
        assert psnr == pytest.approx(figures[original.stem], abs=0.01)

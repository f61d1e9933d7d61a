"""`stae stats` as users run it: numpy's figures of the same values, from either layout."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stae_cli import Codec
from stae_cli.checkpoints.checkpoint import read_checkpoint
from stae_cli.latents import moments
from stae_cli.latents.format import write_latent
from stae_cli.latents.listing import read_latent, stored_in
from stae_cli.storage.entry import FileEntry


@pytest.fixture
def files(stae, photos, tiny, tmp_path):
    assert stae("encode", photos, tmp_path / "files", "--weights", tiny).code == 0
    return tmp_path / "files"


@pytest.fixture
def shards(stae, photos, tiny, tmp_path):
    args = ["encode", photos, tmp_path / "shards", "--weights", tiny, "--shard-size", 4]
    assert stae(*args).code == 0
    return tmp_path / "shards"


def values_of(folder):
    """(C, N) float64: all positions of all latents."""
    latents = [read_latent(path)[0] for path in sorted(folder.rglob("*.safetensors"))]
    return np.concatenate([z.reshape(len(z), -1) for z in latents], axis=1).astype(np.float64)


def check(found, values):
    assert found["positions"] == values.shape[1]
    np.testing.assert_allclose(found["mean"], values.mean(1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["std"], values.std(1, ddof=1), rtol=1e-9)
    np.testing.assert_allclose(found["correlation"], np.corrcoef(values), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["largest_per_channel"], np.abs(values).max(1), rtol=0)
    assert found["largest"] == np.abs(values).max()
    assert found["shift"] == pytest.approx(values.mean(), rel=1e-9, abs=1e-12)
    assert found["scale"] == pytest.approx(1 / values.std(ddof=1), rel=1e-9)


def test_the_figures_are_numpys_in_both_layouts(stae, files, shards):
    values = values_of(files)
    one, other = (stae("stats", folder, "--json") for folder in (files, shards))
    assert (one.code, other.code) == (0, 0), one.err + other.err
    for ran in (one, other):
        check(ran.json, values)
        assert ran.json["latents"] == 9
        assert ran.json["weights"] == "tiny.safetensors"
    assert (one.json["files"], other.json["files"]) == (9, 3)
    assert one.json == stae("stats", files, "--json", "--workers", 1).json


def test_large_latents_are_taken_in_slabs(stae, files, monkeypatch):
    monkeypatch.setattr(moments, "SLAB", 7)
    check(stae("stats", files, "--json").json, values_of(files))


def test_a_large_mean_costs_no_precision(stae, files, tmp_path):
    """Sums of squares would lose the deviation entirely here."""
    latent, info = read_latent(files / "p0.safetensors")
    far = (np.float32(3e6) + latent.astype(np.float32)).astype(np.float32)
    (tmp_path / "far").mkdir()
    write_latent(tmp_path / "far" / "p0.safetensors", far, info)
    found = stae("stats", tmp_path / "far", "--json").json
    np.testing.assert_allclose(found["std"], values_of(tmp_path / "far").std(1, ddof=1), rtol=1e-9)


def test_shift_and_scale_are_what_normalize_takes(stae, files, tiny):
    found = stae("stats", files, "--json").json
    model = read_checkpoint(tiny, name="tiny").model()
    model.scaling = (found["shift"], found["scale"])
    normal = Codec(model, device="cpu").normalize(torch.from_numpy(values_of(files)))
    assert float(normal.mean()) == pytest.approx(0, abs=1e-9)
    assert float(normal.var()) == pytest.approx(1, rel=1e-9)


def test_the_table(stae, files):
    ran = stae("stats", files)
    assert ran.code == 0
    assert ran.err == ""
    found = stae("stats", files, "--json").json
    assert f"shift {found['shift']:.5f}, scale {found['scale']:.5f}" in ran.out
    assert f"{found['std'][15]:.5f}" in ran.out
    assert "9 latents" in ran.out


def test_damaged_latents_are_listed_and_left_out(stae, files):
    values = values_of(files)
    latent, info = read_latent(files / "p0.safetensors")
    broken = latent.copy()
    broken[3, 1, 1] = np.inf
    write_latent(files / "inf.safetensors", broken, info)
    (files / "cut.safetensors").write_bytes((files / "p1.safetensors").read_bytes()[:-3])
    ran = stae("stats", files, "--json")
    assert ran.code == 3
    check(ran.json, values)
    assert {row["file"] for row in ran.json["invalid"]} == {"inf.safetensors", "cut.safetensors"}


def test_of_a_shard_only_the_damaged_latent_is_left_out(stae, files, shards):
    values = [read_latent(path)[0].reshape(16, -1) for path in sorted(files.rglob("*.safetensors"))]
    shard = shards / "shard-00000.safetensors"
    stored = stored_in(FileEntry(shard.name, str(shard)))
    with shard.open("r+b") as file:
        file.seek(stored[0].begin)
        file.write(bytes(10))
    ran = stae("stats", shards, "--json")
    assert (ran.code, ran.json["latents"]) == (3, 8)
    assert [row["file"] for row in ran.json["invalid"]] == [f"{shard.name}:{stored[0].key}"]
    assert stored[0].key == "p0"
    check(ran.json, np.concatenate(values[1:], axis=1).astype(np.float64))


def test_latents_of_two_checkpoints_are_refused(stae, photos, files, other_tiny, tmp_path):
    stae("encode", photos, tmp_path / "other", "--weights", other_tiny)
    ran = stae("stats", files, tmp_path / "other")
    ran.assert_fails(1, "tiny.safetensors", "other.safetensors", "separately")
    ran.assert_fails(1, str(files / "p0.safetensors"), str(tmp_path / "other" / "p0.safetensors"))
    latent, info = read_latent(files / "p0.safetensors")
    wide = np.concatenate([latent, latent])
    write_latent(files / "z.safetensors", wide, replace(info, latent_channels=32))
    stae("stats", files).assert_fails(1, "32 channels")


def test_keys_that_come_twice_are_told(stae, files, shards):
    ran = stae("stats", files, shards, "--json")
    assert ran.code == 0
    assert (ran.json["latents"], ran.json["repeated"]) == (18, 9)
    assert "warning: 9 latents repeat the key of another one" in ran.err
    once = stae("stats", files, "--json")
    assert once.json["repeated"] == 0
    assert "warning" not in once.err


def test_too_little(stae, files, tmp_path):
    stae("stats", tmp_path / "absent").assert_fails(2, "absent")
    (tmp_path / "empty").mkdir()
    stae("stats", tmp_path / "empty").assert_fails(1, "no inputs found")
    (tmp_path / "empty" / "a.safetensors").write_bytes(b"x")
    stae("stats", tmp_path / "empty").assert_fails(1, "too few")


def test_constant_channels_have_no_correlation(stae, files, tmp_path):
    latent, info = read_latent(files / "p0.safetensors")
    flat = latent.copy()
    flat[2] = 5
    (tmp_path / "flat").mkdir()
    write_latent(tmp_path / "flat" / "a.safetensors", flat, info)
    found = stae("stats", tmp_path / "flat", "--json").json
    assert found["std"][2] == 0
    assert found["correlation"][2] == [None] * 16
    assert found["correlation"][0][2] is None
    assert stae("stats", tmp_path / "flat").code == 0

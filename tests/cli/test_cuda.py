"""The commands on a CUDA card: what they make there, beside what the CPU makes."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from tests.pictures import noise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(12):
        picture = noise(200 + 40 * (index % 3), 120 + 56 * (index % 4), seed=index)
        Image.fromarray(picture).save(folder / f"{index:02}.{('png', 'jpg')[index % 2]}")
    for index in range(12, 18):  # whose memory is taken for one another's if it is given back early
        picture = noise(240, 173, seed=index)
        Image.fromarray(picture).save(folder / f"{index:02}.{('png', 'jpg')[index % 2]}")
    return folder


def test_there_and_back_is_what_the_cpu_makes(stae, photos, tmp_path):
    """With the built-in weights, whose width is the published one."""
    for device in ("cuda", "cpu"):
        ran = stae("encode", photos, tmp_path / device, "--device", device, "--weights", "builtin",
                   "--json")  # fmt: skip
        assert ran.code == 0, ran.err
        assert ran.json["done"] == 18
    assert ran.json["dtype"] == "float32"
    for path in sorted((tmp_path / "cpu").glob("*.safetensors")):
        expected = load_file(path)["latents"].astype(np.float32)
        found = load_file(tmp_path / "cuda" / path.name)["latents"].astype(np.float32)
        assert np.abs(found - expected).max() < 0.05 * expected.std()
    for device in ("cuda", "cpu"):
        ran = stae("decode", tmp_path / "cpu", tmp_path / f"pictures-{device}", "--device", device)
        assert ran.code == 0, ran.err
    for path in sorted((tmp_path / "pictures-cpu").glob("*.png")):
        expected, found = (
            np.asarray(Image.open(each), np.int32)
            for each in (path, tmp_path / "pictures-cuda" / path.name)
        )
        assert np.abs(found - expected).mean() < 0.5


def test_a_run_in_parts_makes_the_same_files(stae, photos, tiny, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ("--device", "cuda", "--weights", tiny)
    assert stae("encode", photos, whole, *options).code == 0
    for path in sorted(photos.iterdir()):
        assert stae("encode", path, parts, *options).code == 0
    for path in sorted(whole.glob("*.safetensors")):
        found = load_file(parts / path.name)["latents"]
        assert np.array_equal(found, load_file(path)["latents"])


def test_triton_can_be_left_out(stae, photos, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("STAE_TRITON", "0")
    ran = stae("encode", photos, tmp_path / "out", "--device", "cuda", "--weights", tiny)
    assert ran.code == 0
    assert "STAE_TRITON=0" in ran.err


def test_too_little_memory_is_met_with_smaller_packs(stae, tmp_path):
    source, latents = tmp_path / "source", tmp_path / "latents"
    source.mkdir()
    Image.fromarray(noise(2048, 2048)).save(source / "large.png")
    assert stae("encode", source, latents, "--device", "cuda", "--weights", "builtin").code == 0
    assert stae("decode", latents, tmp_path / "freely", "--device", "cuda").code == 0
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + (256 << 20)
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.mem_get_info()[1])
    try:
        ran = stae("decode", latents, tmp_path / "narrowly", "--device", "cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert ran.code == 0, ran.err
    assert "ran out of memory; it continued with" in ran.err
    freely, narrowly = (
        np.asarray(Image.open(tmp_path / name / "large.png"), np.int32)
        for name in ("freely", "narrowly")
    )
    assert np.abs(freely - narrowly).max() <= 2

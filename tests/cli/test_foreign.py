"""Files of other programs, as SOURCE and in DEST: each is named for what it is.

What `decode` makes of them is tested in `test_decode_foreign.py`.
"""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stae_cli.images import plugins
from tests.pictures import EXAMPLES, noise

PHOTO = EXAMPLES / "street-grey.jpg"


def foreign_files(folder):
    """Latents of other programs, and a word that says what each is."""
    latent = torch.zeros(16, 8, 8)
    folder.mkdir()
    save_file({"latents": latent.bfloat16()}, folder / "bf16.safetensors")
    save_file({"latents": latent, "ids": torch.zeros(2)}, folder / "more.safetensors", {"a": "b"})
    np.savez(folder / "z.npz", latents=latent.numpy())
    np.save(folder / "y.npy", latent.numpy())
    torch.save(latent, folder / "x.pt")
    torch.save(latent, folder / "w.pt", _use_new_zipfile_serialization=False)
    (folder / "v.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    return {
        "bf16.safetensors": "1 bfloat16 tensor (latents), not a stae latent",
        "more.safetensors": "2 float32 tensors (",
        "z.npz": "(.npz)", "y.npy": "(.npy)", "x.pt": "(.pt)", "w.pt": "(.pt)", "v.bin": "Git LFS",
    }  # fmt: skip


@pytest.mark.parametrize("command", ["inspect", "stats", "verify"])
def test_latents_of_other_programs_are_named(stae, tiny, tmp_path, command):
    folder = tmp_path / "foreign"
    words = foreign_files(folder)
    files = sorted(folder.iterdir())
    if command == "verify":  # as they would lie in DEST
        for path in files:
            path.rename(path.with_suffix(".safetensors"))
        ran = stae("verify", folder, "--json")
        found = {row["key"]: row for row in ran.json["findings"]}
        for name, word in words.items():
            row = found[Path(name).with_suffix(".safetensors").name]
            assert row["kind"] == "foreign"
            assert word in row["reason"]
        return
    dest = []
    if command == "stats":
        dest = [tmp_path / "latents"]
        assert stae("encode", PHOTO, *dest, "--weights", tiny).code == 0
    ran = stae(command, *files, *dest, "--json")
    assert ran.code == 3
    reasons = {row["file"]: row["reason"] for row in ran.json["invalid"]}
    for name, word in words.items():
        assert word in reasons[name]


def test_our_own_latents_stay_damaged_when_cut(stae, tiny, tmp_path):
    out = tmp_path / "out"
    encode = ("encode", PHOTO, out, "--weights", tiny, "--json")
    assert stae(*encode).code == 0
    (path,) = out.glob("*.safetensors")
    whole = path.read_bytes()
    for cut in (4, 8, 30, 600, len(whole) - 1):
        path.write_bytes(whole[:cut])
        ran = stae("verify", out, "--json")
        assert ran.json["counts"] == {"damaged": 1}
        assert stae(*encode).json["done"] == 1
    assert path.read_bytes() == whole


def test_what_is_named_like_an_image_or_a_tar_is_named(stae, tiny, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    with zipfile.ZipFile(photos / "a.jpg", "w") as file:
        file.writestr("cat.jpg", b"x")
    (photos / "b.png").write_bytes(b"  <!DOCTYPE html><title>404")
    (photos / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (photos / "d.jpg").write_bytes(b"\0\0\0\x18ftypqt  " + bytes(99))
    (photos / "e.tar").write_bytes((photos / "a.jpg").read_bytes())
    save_file({"latents": torch.zeros(1)}, photos / "f.webp")
    ran = stae("encode", photos, tmp_path / "out", "--weights", tiny, "--json")
    reasons = {row["source"]: row["reason"] for row in ran.json["failures"]}
    kinds = {
        "a.jpg": "a ZIP archive",
        "b.png": "a web page",
        "d.jpg": "a video",
        "f.webp": "a safetensors file",
    }
    for name, kind in kinds.items():
        assert reasons[name].startswith(f"not an image; it begins like {kind}")
    assert reasons["c.png"].startswith("a PNG that cannot be read")
    assert reasons["e.tar"] == "not a tar; it begins like a ZIP archive"


@pytest.fixture
def phone(tmp_path):
    """A phone's folder: HEIC under its own name and under another, and a picture."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pip install 'stae[heif]'")
    folder = tmp_path / "phone"
    folder.mkdir()
    image = pillow_heif.from_bytes("RGB", (40, 24), noise(40, 24).tobytes())
    for name in ("IMG_1.HEIC", "IMG_2.jpg"):
        image.save(folder / name, quality=-1, format="HEIF")
    Image.fromarray(noise(16, 16)).save(folder / "IMG_3.png")
    (folder / "IMG_4.MOV").write_bytes(b"x")
    return folder


def test_a_phones_folder_is_read_with_the_plugin(stae, phone, tiny, tmp_path):
    ran = stae("encode", phone, tmp_path / "out", "--weights", tiny, "--json")
    assert (ran.code, ran.json["done"]) == (0, 3)
    assert ran.json["passed_over_by_suffix"] == {".mov": 1}
    assert stae("verify", tmp_path / "out", "--against", phone).code == 0


def test_without_the_plugin_the_way_to_it_is_said(stae, phone, tiny, tmp_path, monkeypatch):
    install = "`pip install 'stae[heif]'`"
    plain = frozenset([".jpg", ".png"])
    for module in ("runs.encode_plan", "runs.roundtrip_plan"):
        monkeypatch.setattr(f"stae_cli.{module}.IMAGE_SUFFIXES", plain)
    monkeypatch.setitem(plugins.REMEDIES, ".heic", f"{install} reads HEIC (.heic)")
    monkeypatch.setattr(plugins, "INSTALLED", set())
    command = (phone, tmp_path / "out", "--weights", tiny, "--json")
    ran = stae("encode", *command)
    assert (ran.code, ran.json["done"]) == (3, 1)
    assert ran.json["failures"][0]["reason"] == f"a HEIC image, which stae reads with {install}"
    assert "passed over 2 other files: .heic 1, .mov 1" in ran.err
    assert f"{install} reads HEIC (.heic)" in ran.err
    for name in ("IMG_2.jpg", "IMG_3.png"):
        (phone / name).unlink()
    for name in ("encode", "roundtrip"):
        stae(name, *command).assert_fails(1, ".heic 1", f"hint: {install} reads HEIC (.heic); ")

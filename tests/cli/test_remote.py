"""Stores as SOURCE and DEST: `memory://` in this process, and S3 against a server on loopback."""

import io

import fsspec
import pytest
from PIL import Image

from tests.pictures import noise, write_photos


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


@pytest.fixture
def memory():
    """The file system behind `memory://`, empty."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield store
    store.store.clear()


def upload(fs, folder, path):
    for file in folder.rglob("*"):
        if file.is_file():
            fs.pipe_file(f"{path}/{file.relative_to(folder).as_posix()}", file.read_bytes())


def png(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(noise(30, 20, seed=seed)).save(out, "png")
    return out.getvalue()


def pixels_of(folder):
    return {
        p.relative_to(folder).as_posix(): Image.open(p).convert("RGB").tobytes()
        for p in folder.rglob("*.png")
    }


def objects(fs, path):
    return {name.removeprefix(path): fs.cat_file(name) for name in fs.find(path)}


def test_latents_on_a_store_are_those_of_a_folder(stae, photos, memory, tiny, tmp_path):
    ran = stae("encode", photos, "memory://out/latents", "--weights", tiny, "--json")
    assert (ran.code, ran.json["done"], ran.json["dest"]) == (0, 9, "memory://out/latents")
    assert set(objects(memory, "/out/latents")) == {"/stae.json", "/shard-00000.safetensors"}
    stae("encode", photos, tmp_path / "local", "--weights", tiny, "--shard-size", 256)
    local = (tmp_path / "local" / "shard-00000.safetensors").read_bytes()
    assert objects(memory, "/out/latents")["/shard-00000.safetensors"] == local
    for source, pictures in (("memory://out/latents", "a"), (tmp_path / "local", "b")):
        ran = stae("decode", source, tmp_path / pictures, "--weights", tiny)
        assert ran.code == 0, ran.err
    assert pixels_of(tmp_path / "a") == pixels_of(tmp_path / "b")
    assert (
        stae("decode", "memory://out/latents", tmp_path / "a", "--weights", tiny, "--json").json[
            "skipped"
        ]
        == 9
    )
    inspected = stae("inspect", "memory://out/latents", "--json").json
    assert (inspected["latents"], inspected["stored_in"], inspected["invalid"]) == (9, 1, [])

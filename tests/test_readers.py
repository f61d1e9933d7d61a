"""The public readers: one image and one latent, as `stae encode` reads and writes them."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from stae_cli import StaeError, read_image, read_latent
from stae_cli.errors import InputError, UsageError
from stae_cli.images.read import open_image
from stae_cli.images.resize import Prep, prepare
from tests.pictures import write_photos


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", count=2)


@pytest.fixture
def encoded(stae, photos, tiny, tmp_path):
    def encode(*options):
        out = tmp_path / "latents"
        assert stae("encode", photos, out, "--weights", tiny, *options).code == 0
        return out

    return encode


def test_an_image_is_upright_rgb(tmp_path):
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(pixels).save(path := tmp_path / "a.png", exif=exif)
    found = read_image(path)
    assert (found.dtype, found.shape) == (np.uint8, (6, 4, 3))
    assert np.array_equal(found, np.rot90(pixels, -1))
    assert np.array_equal(read_image(str(path)), found)


def test_images_are_those_that_are_encoded(photos):
    for path in photos.rglob("*.*"):
        with path.open("rb") as file:
            prepared = prepare(open_image(file, name=path.name), Prep(), patch=8)
        found = read_image(path)
        assert np.array_equal(found, prepared.pixels[: prepared.height, : prepared.width])


def test_transparency_is_white(tmp_path):
    Image.new("RGBA", (5, 3), (10, 20, 30, 0)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == 255).all()


def test_images_that_cannot_be_read_are_named(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-30])
    (tmp_path / "text.jpg").write_text("words")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    reasons = {"cut.png": "damaged", "text.jpg": "not an image", "empty.png": "empty"}
    for name, reason in {**reasons, "absent.png": "No such file", "folder.png": ""}.items():
        with pytest.raises(InputError, match=rf"{name}`: .*{reason}"):
            read_image(tmp_path / name)


def test_a_latent_of_its_own_file(encoded, photos, tiny):
    out = encoded()
    path = min(out.rglob("*.safetensors"))
    latent, info = read_latent(path)
    assert latent.shape == (16, -(-info.height // 8), -(-info.width // 8))
    assert (latent.dtype, latent.flags.writeable) == (np.float16, True)
    assert read_image(photos / info.source).shape == (info.height, info.width, 3)
    assert info.weights == tiny.name
    with pytest.raises(UsageError, match="one latent"):
        read_latent(path, "p0")


def test_a_latent_of_a_shard(encoded):
    out = encoded("--shard-size", 4)
    shard = out / "shard-00000.safetensors"
    key = json.loads((out / "manifest.jsonl").read_text().splitlines()[1])["key"]
    latent, info = read_latent(str(shard), key)
    assert info.source.startswith(f"{key}.")
    assert latent.shape[0] == 16
    with pytest.raises(UsageError, match="shard of 2 latents; give the key"):
        read_latent(shard)
    with pytest.raises(InputError, match=r"shard-00000.safetensors`: it holds no latent `cat`"):
        read_latent(shard, "cat")


def test_latents_that_cannot_be_read_are_named(encoded, tmp_path):
    whole = min(encoded().rglob("*.safetensors")).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-1])
    (tmp_path / "flipped.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (tmp_path / "text.safetensors").write_text("words, many of them")
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "foreign.safetensors")
    reasons = {
        "cut": "truncated",
        "flipped": "not those that were written",
        "text": "not a safetensors file",
        "foreign": "not a stae latent",
        "absent": "No such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(StaeError, match=rf"{name}.safetensors`: .*{reason}"):
            read_latent(tmp_path / f"{name}.safetensors")

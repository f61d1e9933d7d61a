"""`stae` on archives made by someone who means harm: nothing is written outside of DEST."""

import io
import tarfile

import pytest
from PIL import Image

from stae_cli.checkpoints.checkpoint import read_checkpoint
from tests.difficult import saved
from tests.latents.test_hostile import ESCAPES, INFO, LATENT, replace, write_hostile_shard
from tests.pictures import noise
from tests.shards import write_latents


@pytest.fixture
def jail(tmp_path):
    """The folder in which all happens, and a function that lists what it holds outside of DEST."""
    (tmp_path / "jail" / "in").mkdir(parents=True)

    def outside():
        return {
            path
            for path in tmp_path.rglob("*")
            if path.is_file() and tmp_path / "jail" / "out" not in path.parents
        }

    return tmp_path / "jail", outside


@pytest.mark.parametrize("key", ESCAPES)
def test_decoding_a_hostile_shard_writes_nothing_outside(stae, tiny, jail, key):
    place, outside = jail
    write_hostile_shard(place / "in" / "bad.safetensors", key)
    checkpoint = read_checkpoint(tiny, name="tiny")
    info = replace(
        INFO, weights_sha256=checkpoint.fingerprint, architecture=checkpoint.architecture.describe()
    )
    write_latents(place / "in" / "good.safetensors", [("fine", info, LATENT)])
    before = outside()
    ran = stae("decode", place / "in", place / "out", "--weights", tiny)
    assert ran.code == 3, ran.err
    assert "bad.safetensors" in ran.err
    assert outside() == before
    assert [path.name for path in (place / "out").rglob("*.png")] == ["fine.png"]
    assert stae("inspect", place / "in").code == 3


@pytest.mark.parametrize("shard_size", [0, 4])
def test_encoding_a_hostile_tar_writes_nothing_outside(stae, tiny, jail, shard_size):
    place, outside = jail
    names = [f"{key}.jpg" for key in ESCAPES if key.isascii() and "\0" not in key]
    image = saved(Image.fromarray(noise(16, 16)), "JPEG")
    with tarfile.open(place / "in" / "bad.tar", "w") as tar:
        for name in ["fine.jpg", *names]:
            info = tarfile.TarInfo(name)
            info.size = len(image)
            tar.addfile(info, io.BytesIO(image))
    before = outside()
    arguments = ["encode", place / "in", place / "out", "--weights", tiny, "--json"]
    ran = stae(*arguments, "--shard-size", shard_size)
    assert ran.code == 3, ran.err
    assert outside() == before
    assert ran.json["done"] >= 1
    listed = {row["source"] for row in ran.json["failures"]}
    assert {"bad/../x.jpg", "bad//etc/x.jpg", "bad/C:x.jpg", "bad/con.jpg"} <= listed
    assert "bad/fine.jpg" not in listed


def test_a_tar_that_is_named_like_the_folder_above_stays_inside(stae, tiny, jail):
    place, outside = jail
    image = saved(Image.fromarray(noise(16, 16)), "JPEG")
    with tarfile.open(place / "in" / "...tar", "w") as tar:
        info = tarfile.TarInfo("x.jpg")
        info.size = len(image)
        tar.addfile(info, io.BytesIO(image))
    before = outside()
    stae("encode", place / "in" / "...tar", place / "out", "--weights", tiny)
    assert outside() == before
    assert len(list((place / "out").rglob("*.safetensors"))) == 1

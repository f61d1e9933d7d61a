"""`stae encode --flip`: the mirrored picture's latent beside the picture's, in either layout."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from stae_cli import LatentDataset, read_latent
from stae_cli.latents.listing import stored_in
from stae_cli.storage.entry import FileEntry
from tests.pictures import noise, write_photos

LAYOUTS = [[], ["--shard-size", 4]]


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


@pytest.fixture(params=LAYOUTS, ids=["files", "shards"])
def layout(request):
    return request.param


@pytest.fixture
def flipped(stae, photos, tiny, tmp_path, layout):
    ran = stae("encode", photos, tmp_path / "flipped", "--weights", tiny, "--flip", *layout)
    assert ran.code == 0, ran.err
    assert "encoded 9," in ran.err
    return tmp_path / "flipped"


def stored(folder):
    files = sorted(folder.rglob("*.safetensors"))
    found = [each for file in files for each in stored_in(FileEntry(file.name, str(file)))]
    return {each.info.source: each for each in found}


def test_the_flip_is_the_latent_of_the_mirrored_file(stae, photos, tiny, tmp_path, flipped):
    """For sizes that are no multiples of 8, too: padding is on the same sides."""
    mirrored = tmp_path / "mirrored"
    for path in photos.rglob("*.png"):
        target = mirrored / path.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(Image.open(path))[:, ::-1]).save(target)
    for source, dest in ((photos, "plain"), (mirrored, "mirror")):
        assert stae("encode", source, tmp_path / dest, "--weights", tiny).code == 0
    plain, mirror = stored(tmp_path / "plain"), stored(tmp_path / "mirror")
    found = stored(flipped)
    assert found.keys() == plain.keys() == mirror.keys()
    for key, each in found.items():
        latent, flip = each.read_both()
        assert latent.tobytes() == plain[key].read().tobytes()
        assert flip.tobytes() == mirror[key].read().tobytes()


def test_a_file_holds_both_under_documented_names(stae, photos, tiny, tmp_path):
    assert stae("encode", photos, tmp_path / "out", "--weights", tiny, "--flip").code == 0
    with safe_open(tmp_path / "out" / "p0.safetensors", framework="np") as file:
        assert sorted(file.keys()) == ["latents", "latents_flip"]
        assert json.loads(file.metadata()["prep"]) == {"flip": True}
    latent, info = read_latent(tmp_path / "out" / "p0.safetensors")
    assert info.flip_crc32
    assert latent.shape == (16, 5, 3)


def test_finished_flips_are_skipped_and_others_are_another_run(stae, photos, tiny, flipped, layout):
    again = stae("encode", photos, flipped, "--weights", tiny, "--flip", *layout, "--json")
    assert (again.json["done"], again.json["skipped"]) == (0, 9)
    other = stae("encode", photos, flipped, "--weights", tiny, *layout)
    other.assert_fails(1, "prep", "flip")


def test_all_commands_read_them(stae, photos, tiny, tmp_path, flipped):
    checked = stae("verify", flipped, "--against", photos, "--reencode", 9, "--weights", tiny)
    assert checked.code == 0, checked.err
    assert "all good" in checked.out
    assert stae("inspect", flipped).code == 0
    assert stae("stats", flipped).code == 0
    ran = stae("decode", flipped, tmp_path / "pictures", "--weights", tiny)
    assert ran.code == 0, ran.err
    assert len(list((tmp_path / "pictures").rglob("*.png"))) == 9


def test_a_damaged_flip_is_found_and_made_again(stae, photos, tiny, flipped, layout):
    key, first = next(iter(stored(flipped).items()))
    path = next(flipped.rglob(first.file.key))
    sound = path.read_bytes()
    broken = bytearray(sound)
    broken[first.begin + first.size] ^= 0x40
    path.write_bytes(broken)
    checked = stae("verify", flipped)
    assert checked.code == 3
    assert f"{key.partition('.')[0]}" in checked.err
    assert "not those that were written" in checked.err
    command = ["encode", photos, flipped, "--weights", tiny, "--flip", *layout, "--json"]
    assert stae(*command, "--check").json["done"] == 1
    assert path.read_bytes() == sound


def test_a_changed_picture_among_finished_ones(stae, photos, tiny, flipped, layout):
    """Its shard is written again, with the flips of the others."""
    before = {key: each.read_both() for key, each in stored(flipped).items()}
    Image.fromarray(noise(50, 30, seed=77)).save(photos / "p1.png")
    ran = stae("encode", photos, flipped, "--weights", tiny, "--flip", *layout, "--json")
    assert (ran.json["done"], ran.json["skipped"]) == (1, 8)
    for key, each in stored(flipped).items():
        latent, flip = each.read_both()
        same = latent.tobytes() == before[key][0].tobytes()
        assert same == (key != "p1.png")
        assert (flip.tobytes() == before[key][1].tobytes()) == same


def test_training_draws_one_of_the_two(flipped):
    dataset = LatentDataset(flipped, flip=True)
    torch.manual_seed(1)
    drawn = {tuple(dataset[0]["latents"].flatten().tolist()) for _ in range(40)}
    assert len(drawn) == 2


def test_a_picture_that_fails_fails_for_both(stae, photos, tiny, tmp_path, layout):
    (photos / "p3.png").write_bytes(b"not a picture")
    ran = stae(
        *("encode", photos, tmp_path / "out", "--weights", tiny, "--flip", *layout, "--json")
    )
    assert (ran.code, ran.json["done"], ran.json["failed"]) == (3, 8, 1)
    assert all(each.has_flip for each in stored(tmp_path / "out").values())


def test_the_crop_of_imagenet(stae, tiny, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.fromarray(noise(150, 100)).save(tmp_path / "photos" / "a.png")
    out = tmp_path / "out"
    ran = stae("encode", tmp_path / "photos", out, "--weights", tiny, "--adm-crop", 32)
    assert ran.code == 0, ran.err
    _, info = read_latent(out / "a.safetensors")
    assert (info.width, info.height, info.prep) == (32, 32, '{"adm_crop":32}')
    for wrong in (["--square", 32], ["--short-side", 9], ["--max-pixels", 99]):
        ran = stae("encode", tmp_path / "photos", out, "--adm-crop", 32, *wrong)
        ran.assert_fails(2, "sets the size by itself")
    stae("encode", tmp_path / "photos", out, "--adm-crop", 99999).assert_fails(2, "megapixels")
    ran = stae(
        "roundtrip", tmp_path / "photos", tmp_path / "r", "--weights", tiny, "--adm-crop", 32
    )
    assert ran.code == 0, ran.err
    (picture,) = (tmp_path / "r").glob("*.reconstruction.png")
    with Image.open(picture) as image:
        assert image.size == (32, 32)

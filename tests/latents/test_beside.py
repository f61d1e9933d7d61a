"""What is stored beside a latent: the mirrored picture's, a caption and a label."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from stae_cli import LatentDataset, collate_latents
from stae_cli.errors import InputError, StaeError
from stae_cli.latents import shard_format
from stae_cli.latents.format import write_latent
from stae_cli.latents.info import LatentInfo
from stae_cli.latents.listing import stored_in
from stae_cli.storage.entry import FileEntry
from tests.shards import write_latents

INFO = LatentInfo(
    *("0.1.0", "f8c16", "photo-1", "ab" * 32, 8, 4, "a.jpg", 12, 10**18, 21, 9, 42, 18, "{}"),
    "float32",
    caption='a "quoted" cat,\n猫と犬 — été',
    label=6,
)
GENERATOR = np.random.default_rng(0)
LATENT, FLIP = GENERATOR.standard_normal((2, 4, 2, 3)).astype(np.float16)


@pytest.fixture(params=["file", "shard"])
def path(request, tmp_path):
    path = tmp_path / "a.safetensors"
    if request.param == "file":
        write_latent(path, LATENT, INFO, flip=FLIP)
    else:
        write_latents(
            path, [("a", INFO, LATENT, FLIP), ("b", replace(INFO, label=2), FLIP, LATENT)]
        )
    return path


def read(path):
    return stored_in(FileEntry(path.name, str(path)))


def test_both_latents_and_what_is_said_of_them_come_back(path):
    first = read(path)[0]
    assert (first.info.caption, first.info.label) == (INFO.caption, 6)
    latent, flip = first.read_both()
    assert latent.tobytes() == LATENT.tobytes() == first.read().tobytes()
    assert flip.tobytes() == FLIP.tobytes()
    if not first.is_alone:
        second = read(path)[1]
        assert second.info.label == 2
        assert second.read_both()[1].tobytes() == LATENT.tobytes()


def test_other_readers_find_the_flip_by_its_name(path):
    with safe_open(path, framework="np") as file:
        name = "latents_flip" if "latents" in file.keys() else "a//flip"  # noqa: SIM118
        assert file.get_tensor(name).tobytes() == FLIP.tobytes()


def test_captions_are_stored_as_they_are_written(path):
    assert "猫と犬" in path.read_bytes().decode(errors="ignore")


@pytest.mark.parametrize(
    ("old", "new"),
    [("猫と犬", "猫と猫"), ("flip_crc32", "flip_crc33"), ("latents_flip", "latents_flop")],
)
def test_what_was_not_written_is_damage(path, old, new):
    whole = path.read_bytes()
    if old.encode() not in whole:
        old, new = "a//flip", "a//flop"
    path.write_bytes(whole.replace(old.encode(), new.encode(), 1))
    with pytest.raises(InputError, match="damaged"):
        read(path)


def test_a_damaged_flip_is_noticed_and_the_latent_itself_is_good(path):
    whole = bytearray(path.read_bytes())
    begin = read(path)[0].begin + LATENT.nbytes
    whole[begin] ^= 1
    path.write_bytes(whole)
    stored = read(path)[0]
    stored.read()
    with pytest.raises(InputError, match="not those that were written"):
        stored.read_both()


def test_a_sample_is_one_of_the_two_at_random(path):
    dataset = LatentDataset(path.parent, flip=True)
    torch.manual_seed(0)
    drawn = [dataset[0] for _ in range(100)]
    flipped = sum(np.array_equal(sample["latents"], FLIP) for sample in drawn)
    assert sum(np.array_equal(sample["latents"], LATENT) for sample in drawn) == 100 - flipped
    assert 30 < flipped < 70
    assert {(sample["caption"], sample["label"]) for sample in drawn} == {(INFO.caption, 6)}
    batch = collate_latents(drawn[:3])
    assert batch["caption"] == [INFO.caption] * 3
    assert batch["label"].tolist() == [6, 6, 6]
    torch.manual_seed(0)
    again = LatentDataset(path.parent, flip=True, crop=1)
    assert {tuple(again[0]["latents"].flatten().tolist()) for _ in range(200)} == {
        tuple(values[:, row, column].tolist())
        for values in (LATENT, FLIP)
        for row in range(2)
        for column in range(3)
    }


def test_without_flip_no_sample_is_mirrored(path):
    dataset = LatentDataset(path.parent)
    assert all(np.array_equal(dataset[0]["latents"], LATENT) for _ in range(50))


def test_latents_without_a_flip_are_refused_where_it_is_asked_for(tmp_path):
    write_latent(tmp_path / "a.safetensors", LATENT, INFO)
    with pytest.raises(StaeError, match="no latent of its mirrored picture") as error:
        LatentDataset(tmp_path, flip=True)
    assert "--flip" in error.value.hint


def test_damaged_flips_are_named_when_they_are_drawn(path):
    whole = bytearray(path.read_bytes())
    whole[read(path)[0].begin + LATENT.nbytes] ^= 1
    path.write_bytes(whole)
    dataset = LatentDataset(path.parent, flip=True)
    with pytest.raises(StaeError, match=r"`a` .*damaged"):
        [dataset[0] for _ in range(50)]


def test_captions_too_long_for_a_shard_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_format, "HEADER_LIMIT", 10_000)
    long = replace(INFO, caption="x" * 4000)
    with pytest.raises(StaeError, match="captions of 3 pictures are too long") as error:
        write_latents(tmp_path / "s.safetensors", [(key, long, LATENT) for key in "abc"])
    assert "--shard-size" in error.value.hint


def test_no_key_is_taken_for_a_flip(tmp_path):
    """Keys that end like a flip's name cannot be: they have no two slashes in a row."""
    path = tmp_path / "s.safetensors"
    write_latents(path, [("a", INFO, LATENT), ("a/flip", INFO, FLIP)])
    assert [stored.key for stored in read(path)] == ["a", "a/flip"]
    write_latents(path, [("a//flip", INFO, FLIP)])
    with pytest.raises(InputError, match="damaged"):
        read(path)


@pytest.mark.parametrize("label", ["-2", "x", str(1 << 31), "9" * 19])
def test_labels_that_are_not_classes_are_damage(tmp_path, label):
    path = tmp_path / "a.safetensors"
    write_latent(path, LATENT, INFO)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header["__metadata__"]["label"] = label
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
    with pytest.raises(InputError, match="damaged"):
        read(path)

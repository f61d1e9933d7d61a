"""`stae encode --shard-size` as users run it: whole shards, read everywhere like single files."""

import json
import os
import signal

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from stae_cli import LatentDataset
from stae_cli.errors import StaeError
from stae_cli.latents.listing import list_latents
from stae_cli.storage.entry import FileEntry
from tests.launcher import wait_for
from tests.pictures import noise, write_photos

SHARDS = [f"shard-{number:05}.safetensors" for number in range(3)]


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


@pytest.fixture
def encode(stae, photos, tiny, tmp_path):
    """Encodes the photos to shards of four in `out`, with further options."""

    def run(*options, dest="out", source=photos):
        arguments = ["encode", source, tmp_path / dest, "--weights", tiny]
        return stae(*arguments, "--shard-size", 4, *options, "--json")

    return run


@pytest.fixture
def out(encode, tmp_path):
    assert encode().code == 0
    return tmp_path / "out"


@pytest.fixture
def files(stae, photos, tiny, tmp_path):
    """The same latents in files of their own."""
    assert stae("encode", photos, tmp_path / "files", "--weights", tiny).code == 0
    return tmp_path / "files"


def tensors(dest):
    """The bytes of every latent, by key, as safetensors itself reads them."""
    found = {}
    for path in sorted(dest.rglob("shard-*.safetensors")):
        with safe_open(path, framework="np") as file:
            found |= {key: file.get_tensor(key).tobytes() for key in file.keys()}  # noqa: SIM118
    return found


def times(dest):
    return {path.name: path.stat().st_mtime_ns for path in dest.rglob("shard-*.safetensors")}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_shards_hold_what_single_files_hold(out, files):
    assert [path.name for path in sorted(out.iterdir())] == ["manifest.jsonl", *SHARDS, "stae.json"]
    singles = {}
    for path in files.rglob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            key = path.relative_to(files).with_suffix("").as_posix()
            singles[key] = file.get_tensor("latents").tobytes()
    assert tensors(out) == singles
    with safe_open(out / SHARDS[2], framework="np") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["format_version"]) == ("stae-latents-shard", "1")
    assert metadata["weights"] == "tiny.safetensors"
    assert json.loads(metadata["pictures"])["sub/p8"]["source"] == "sub/p8.png"


def test_the_manifest_tells_where_every_key_is(encode, out, photos):
    def check():
        rows = lines(out / "manifest.jsonl")
        assert len(rows) == 9
        for row in rows:
            with safe_open(out / row["shard"], framework="np") as file:
                assert row["key"] in file.keys()  # noqa: SIM118
            with Image.open(photos / f"{row['key']}.png") as image:
                assert image.size == (row["width"], row["height"])

    check()
    whole = (out / "manifest.jsonl").read_bytes()
    (out / "manifest.jsonl").unlink()
    assert encode().json["skipped"] == 9
    check()
    (out / SHARDS[1]).unlink()
    with pytest.raises(StaeError, match="has lost `shard-00001"):
        LatentDataset(out)
    assert encode().json["done"] == 4
    assert (out / "manifest.jsonl").read_bytes() == whole
    Image.fromarray(noise(9, 9)).save(photos / "p1.png")
    assert encode().json["done"] == 1
    check()


def test_decode_reads_both_layouts_alike(stae, out, files, tiny, tmp_path):
    pixels = {}
    for layout in (out, files):
        pictures = tmp_path / f"{layout.name}-pictures"
        assert stae("decode", layout, pictures, "--weights", tiny).code == 0
        pixels[layout] = {
            path.relative_to(pictures): np.asarray(Image.open(path)).tobytes()
            for path in pictures.rglob("*.png")
        }
        again = stae("decode", layout, pictures, "--weights", tiny, "--json").json
        assert (again["done"], again["skipped"]) == (0, 9)
    assert len(pixels[out]) == 9
    assert pixels[out] == pixels[files]


def test_inspect_reads_both_layouts_alike(stae, out, files):
    sharded, single = (stae("inspect", p, "--files", "--json").json for p in (out, files))
    assert (sharded["latents"], sharded["stored_in"], single["stored_in"]) == (9, 3, 9)
    own = {"file", "bytes"}
    rows, others = (
        [{name: value for name, value in row.items() if name not in own} for row in found["files"]]
        for found in (sharded, single)
    )
    assert sorted(rows, key=str) == sorted(others, key=str)
    for what in ("weights", "pictures", "prep", "dtype", "architecture", "invalid"):
        assert sorted(sharded[what], key=str) == sorted(single[what], key=str)


def test_a_dataset_reads_both_layouts_alike(out, files):
    sharded, single = (
        {sample["key"]: sample["latents"].numpy().tobytes() for sample in LatentDataset(folder)}
        for folder in (out, files)
    )
    assert len(sharded) == 9
    assert sharded == single


def test_only_shards_with_something_new_are_written(encode, out, photos):
    before, latents = times(out), tensors(out)
    assert (encode().json["done"], times(out)) == (0, before)
    Image.fromarray(noise(25, 33, seed=50)).save(photos / "p5.png")
    again = encode()
    assert (again.json["done"], again.json["skipped"]) == (1, 8)
    assert [name for name, time in times(out).items() if time != before[name]] == [SHARDS[1]]
    changed = {key for key, data in tensors(out).items() if data != latents[key]}
    assert changed == {"p5"}


def test_a_failed_picture_is_tried_again_and_takes_its_place(encode, photos, tmp_path):
    whole = (photos / "p2.png").read_bytes()
    (photos / "p2.png").write_bytes(whole[:-30])
    out = tmp_path / "out"
    assert (encode().code, encode().json["failed"]) == (3, 1)
    assert len(tensors(out)) == len(lines(out / "manifest.jsonl")) == 8
    before = times(out)
    (photos / "p2.png").write_bytes(whole)
    ran = encode()
    assert (ran.code, ran.json["done"]) == (0, 1)
    assert [name for name, time in times(out).items() if time != before[name]] == [SHARDS[0]]
    assert encode(dest="anew").code == 0
    for name in SHARDS:  # as if it had been sound from the start
        assert (out / name).read_bytes() == (tmp_path / "anew" / name).read_bytes()
    assert sorted(lines(out / "manifest.jsonl"), key=str) == lines(tmp_path / "anew/manifest.jsonl")


def test_a_picture_between_others_moves_them_on(encode, out, photos):
    latents = tensors(out)
    Image.fromarray(noise(20, 20)).save(photos / "p00.png")
    assert encode().code == 0
    moved = tensors(out)
    assert {key: moved[key] for key in latents} == latents
    assert moved.keys() - latents.keys() == {"p00"}
    assert len(lines(out / "manifest.jsonl")) == 10
    assert len(LatentDataset(out)) == 10  # nothing is there twice


def test_sources_that_cannot_be_reached_lose_nothing(encode, out, photos, monkeypatch):
    """An unreachable server is no reason to throw away what was made from it."""
    before, latents, state = times(out), tensors(out), FileEntry.state

    def unreachable(self):
        if self.key in ("p1.png", "sub/p8.png"):
            raise OSError(5, "Input/output error")
        return state(self)

    monkeypatch.setattr(FileEntry, "state", unreachable)
    ran = encode()
    assert (ran.code, ran.json["failed"], ran.json["skipped"]) == (3, 2, 7)
    assert (times(out), tensors(out)) == (before, latents)
    assert len(lines(out / "manifest.jsonl")) == 9


def test_shards_of_other_sources_stop_the_run(encode, out, photos, tmp_path):
    latents = tensors(out)
    others = tmp_path / "others"
    others.mkdir()
    Image.fromarray(noise(8, 8)).save(others / "x.png")
    encode(source=others).assert_fails(1, "another DEST")
    encode(source=photos / "p1.png").assert_fails(1, "another DEST")
    assert tensors(out) == latents


def test_a_renamed_picture_does_not_move_the_others_of_its_shard(encode, out, photos):
    latents, before = tensors(out), times(out)
    (photos / "p1.png").rename(photos / "q1.png")
    ran = encode().json
    assert (ran["orphaned"], ran["done"]) == ([f"{SHARDS[0]}:p1"], 2)  # and one that moves up
    assert times(out)[SHARDS[0]] == before[SHARDS[0]]
    assert tensors(out) == {**latents, "q1": latents["p1"]}
    assert encode("--overwrite").code == 0
    assert tensors(out).keys() == latents.keys() - {"p1"} | {"q1"}


def test_another_layout_is_refused(stae, encode, out, files, photos, tiny, tmp_path):
    before = times(out)
    arguments = ["--weights", tiny]
    stae("encode", photos, out, *arguments, "--shard-size", 5).assert_fails(1, "shard_size: 5")
    stae("encode", photos, out, *arguments).assert_fails(1, "layout: files, not shards")
    stae("encode", photos, files, *arguments, "--shard-size", 4).assert_fails(1, "layout")
    for folder in (out, files):  # nor without the record
        (folder / "stae.json").unlink()
    stae("encode", photos, out, *arguments).assert_fails(1, "would stay")
    stae("encode", photos, files, *arguments, "--shard-size", 4).assert_fails(1, "would stay")
    assert times(out) == before


def test_damaged_shards_are_made_again_and_foreign_ones_kept(encode, out):
    latents = tensors(out)
    (out / SHARDS[0]).write_bytes((out / SHARDS[0]).read_bytes()[:-1])
    (out / SHARDS[1]).write_bytes(b"")
    assert encode().json["done"] == 8
    assert tensors(out) == latents
    save_file({"precious": np.ones(3)}, out / SHARDS[1])
    precious = (out / SHARDS[1]).read_bytes()
    encode().assert_fails(1, SHARDS[1])
    assert (out / SHARDS[1]).read_bytes() == precious


@pytest.mark.skipif(os.name == "nt", reason="posix")
@pytest.mark.parametrize("number", ["SIGKILL", "SIGINT"])
def test_an_interrupted_run_leaves_whole_shards_and_no_manifest(
    encode, tiny, tmp_path, launcher, number
):
    photos = write_photos(tmp_path / "many", count=120)
    assert encode(source=photos, dest="whole").code == 0
    out = tmp_path / "cut"
    arguments = ["encode", photos, out, "--weights", tiny, "--shard-size", 4]
    arguments += ["--batch-patches", 40, "--workers", 1]
    with launcher.running(*arguments, log=tmp_path / "log") as process:
        wait_for(lambda: len(list(out.glob("*.safetensors"))) >= 3, ended=process.has_ended)
        code = process.end_by(getattr(signal, number))
    assert code == {"SIGKILL": -9, "SIGINT": 130}[number], process.err
    assert not (out / "manifest.jsonl").exists()
    before = times(out)
    assert all((out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
               for name in before)  # fmt: skip
    ran = encode(source=photos, dest="cut")
    assert (ran.code, ran.json["skipped"]) == (0, 4 * len(before))
    assert before.items() <= times(out).items()
    whole = lines(tmp_path / "whole" / "manifest.jsonl")
    assert sorted(lines(out / "manifest.jsonl"), key=str) == sorted(whole, key=str)
    assert not [path for path in out.iterdir() if path.name.endswith(".tmp")]


def test_a_stopped_run_leaves_no_manifest_that_is_out_of_date(encode, out, photos):
    Image.fromarray(noise(20, 20)).save(photos / "p00.png")  # moves every picture
    (photos / "p3.png").write_bytes(b"")
    encode("--strict").assert_fails(1, "p3.png")
    rows = lines(out / "manifest.jsonl") if (out / "manifest.jsonl").exists() else []
    for row in rows:
        with safe_open(out / row["shard"], framework="np") as file:
            assert row["key"] in file.keys()  # noqa: SIM118


def preps(dest):
    """What every latent says was done to its picture, by key."""
    return {latent.key: latent.info.prep for latent in list_latents([dest]).latents}


def test_latents_of_other_settings_do_not_stay_in_a_shard(encode, out, photos):
    """Not for a picture that fails, nor where an earlier run that replaced them was cut off."""
    broken = photos / "p2.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    smaller = ("--short-side", 16)
    assert encode(*smaller, "--overwrite", "--strict").code == 1
    assert set(preps(out).values()) == {"{}"}  # it ended before a shard was whole
    ran = encode(*smaller)
    assert (ran.code, ran.json["done"], ran.json["failed"]) == (3, 8, 1)
    assert set(preps(out).values()) == {'{"short_side":16}'}
    assert "p2" not in preps(out)
    assert len(lines(out / "manifest.jsonl")) == 8


def test_a_shard_of_nothing_but_other_settings_goes(encode, out, photos):
    for number in range(4):
        (photos / f"p{number}.png").write_bytes(b"\x89PNG and nothing else")
    assert encode("--short-side", 16, "--overwrite").code == 3
    assert set(preps(out).values()) == {'{"short_side":16}'}
    assert not (out / SHARDS[0]).exists()
    assert len(lines(out / "manifest.jsonl")) == 5


def test_overwriting_keeps_what_cannot_be_made_again(encode, out, photos):
    latents = tensors(out)
    (photos / "p2.png").write_bytes(b"\x89PNG and nothing else")
    ran = encode("--overwrite")
    assert (ran.code, ran.json["done"]) == (3, 8)
    assert tensors(out) == latents


def test_no_old_shard_stays_behind_larger_ones(encode, tiny, stae, photos, tmp_path):
    """Also where the one just behind the last is missing."""
    out = tmp_path / "few"
    few = ("encode", photos, out, "--weights", tiny, "--shard-size")
    assert stae(*few, 1, "--unit-rank", 0, "--unit-count", 4).code == 0
    stae(*few, 4, "--overwrite").assert_fails(1, "shard-00004", "more than this run's sources")


def test_a_shard_that_cannot_be_read_is_not_taken_for_an_absent_one(
    encode, out, photos, monkeypatch
):
    latents, place = tensors(out), str(out / SHARDS[0])
    opened = FileEntry.open

    def failing(self):
        if self.place == place:
            raise OSError(5, "Input/output error")
        return opened(self)

    monkeypatch.setattr(FileEntry, "open", failing)
    Image.fromarray(noise(25, 33, seed=50)).save(photos / "p1.png")
    encode().assert_fails(1, SHARDS[0], "Input/output error")
    monkeypatch.undo()
    assert tensors(out) == latents


def test_a_kept_latent_whose_data_are_damaged_is_not_passed_on(encode, out, photos):
    shard = out / SHARDS[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1  # of p3
    shard.write_bytes(data)
    Image.fromarray(noise(25, 33, seed=50)).save(photos / "p1.png")
    encode().assert_fails(1, "p3", "not those that were written", "--check")
    shard.unlink()
    assert encode().code == 0

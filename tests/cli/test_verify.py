"""`stae verify` as users run it: every kind of damage is found and named, and nothing else is."""

import json
import os
import shutil
import signal
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from stae_cli.latents.format import write_latent
from stae_cli.latents.listing import read_latent
from stae_cli.verify.findings import check_file
from tests.pictures import noise, write_photos

LAYOUTS = [[], ["--shard-size", 4]]


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


@pytest.fixture(params=LAYOUTS, ids=["files", "shards"])
def latents(request, stae, photos, tiny, tmp_path):
    ran = stae("encode", photos, tmp_path / "latents", "--weights", tiny, *request.param)
    assert ran.code == 0, ran.err
    return tmp_path / "latents"


@pytest.fixture
def files(stae, photos, tiny, tmp_path):
    """A DEST with a file for each latent."""
    assert stae("encode", photos, tmp_path / "latents", "--weights", tiny).code == 0
    return tmp_path / "latents"


def findings(ran):
    """(kind, key) of each, after a look at the exit code and the terminal."""
    assert ran.code == (3 if ran.json["findings"] else 0)
    assert ran.json["good"] == (not ran.json["findings"])
    for row in ran.json["findings"]:
        assert f"{row['kind']}: {row['key']}: {row['reason']}" in ran.err
    return {(row["kind"], row["key"]) for row in ran.json["findings"]}


def test_all_is_good(stae, photos, latents):
    alone = stae("verify", latents)
    assert alone.code == 0, alone.err
    assert alone.err == ""
    assert "9 latents" in alone.out
    assert "all good" in alone.out
    ran = stae("verify", latents, "--against", photos, "--json")
    assert findings(ran) == set()
    assert (ran.json["latents"], ran.json["sources"]) == (9, 9)
    assert ran.json["bytes"] == sum(p.stat().st_size for p in latents.rglob("*.safetensors"))


def test_nothing_in_dest_is_touched(stae, photos, latents):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in latents.rglob("*")}
    stae("verify", latents, "--against", photos)
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in latents.rglob("*")}


def test_a_truncated_file(stae, photos, latents):
    victim = sorted(latents.glob("*.safetensors"))[0]
    victim.write_bytes(victim.read_bytes()[:-7])
    assert findings(stae("verify", latents, "--json")) == {("damaged", victim.name)}
    found = findings(stae("verify", latents, "--against", photos, "--json"))
    lost = range(4) if "shard" in victim.name else ()  # what a shard held is not known any more
    missing = {("missing", f"p{number}.png") for number in lost}
    assert found == {("damaged", victim.name)} | missing


def test_a_flipped_bit(stae, latents, tiny, tmp_path):
    victim = sorted(latents.glob("*.safetensors"))[-1]
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1  # in the last value of the last latent
    victim.write_bytes(data)
    ran = stae("verify", latents, "--json")
    assert [row["kind"] for row in ran.json["findings"]] == ["damaged"]
    assert "not those that were written" in ran.json["findings"][0]["reason"]
    assert ran.json["findings"][0]["key"].startswith(victim.name)
    ran = stae("decode", latents, tmp_path / "pictures", "--weights", tiny, "--json")
    assert (ran.code, ran.json["done"], ran.json["failed"]) == (3, 8, 1)
    ran = stae("stats", latents)
    assert (ran.code, "not those that were written" in ran.err) == (3, True)


def test_a_nan(stae, files):
    victim = files / "p4.safetensors"
    latent, info = read_latent(victim)
    latent[3, 0, 0] = np.nan
    write_latent(victim, latent, info)
    ran = stae("verify", files, "--json")
    assert findings(ran) == {("damaged", "p4.safetensors")}
    assert "NaN" in ran.json["findings"][0]["reason"]


def test_latents_of_other_weights_and_settings(stae, photos, files, other_tiny, tiny, tmp_path):
    stae("encode", photos / "p0.png", tmp_path / "b", "--weights", other_tiny)
    stae("encode", photos / "p1.png", tmp_path / "c", "--weights", tiny, "--short-side", 8)
    stae("encode", photos / "p2.png", tmp_path / "d", "--weights", tiny, "--save-dtype", "float32")
    for folder, name in [("b", "p0"), ("c", "p1"), ("d", "p2")]:
        (tmp_path / folder / f"{name}.safetensors").replace(files / f"{name}.safetensors")
    expected = {("mixed", f"p{number}.safetensors") for number in range(3)}
    ran = stae("verify", files, "--json")
    assert findings(ran) == expected
    assert [row["reason"].split()[0] for row in ran.json["findings"]] == [
        "weights", "prep", "dtype"
    ]  # fmt: skip
    (files / "stae.json").unlink()
    assert findings(stae("verify", files, "--json")) == expected | {("record", "stae.json")}


def test_changed_removed_and_new_sources(stae, photos, latents):
    Image.fromarray(noise(30, 30, seed=5)).save(photos / "p1.png")
    os.utime(photos / "p2.png", ns=(1, 1))
    (photos / "sub" / "p8.png").unlink()
    Image.fromarray(noise(9, 9)).save(photos / "new.png")
    found = findings(stae("verify", latents, "--against", photos, "--json"))
    kinds = sorted((kind, key.split(":")[-1].removesuffix(".safetensors")) for kind, key in found)
    assert kinds == [
        ("missing", "new.png"), ("orphaned", "sub/p8"), ("stale", "p1"), ("stale", "p2")
    ]  # fmt: skip
    assert findings(stae("verify", latents, "--json")) == set()


def test_what_is_stored_twice_or_under_a_wrong_name(stae, photos, tiny, files, tmp_path):
    stae("encode", photos / "p0.png", tmp_path / "s", "--weights", tiny, "--shard-size", 4)
    (tmp_path / "s" / "shard-00000.safetensors").replace(files / "shard-00000.safetensors")
    stae("encode", photos / "p1.png", tmp_path / "k", "--weights", tiny, "--keep-extension")
    (tmp_path / "k" / "p1.png.safetensors").replace(files / "p1.png.safetensors")
    (files / "p2.safetensors").replace(files / "p3.safetensors")
    found = findings(stae("verify", files, "--against", photos, "--json"))
    assert found == {
        ("duplicate", "shard-00000.safetensors:p0"), ("mixed", "shard-00000.safetensors:p0"),
        ("duplicate", "p1.safetensors"), ("misnamed", "p3.safetensors"), ("missing", "p3.png"),
    }  # fmt: skip


def test_foreign_files_and_empty_ones(stae, files):
    save_file({"x": np.ones(3)}, files / "other.safetensors")
    (files / "empty.safetensors").write_bytes(b"")
    (files / "notes.txt").write_text("not ours, and no one's business")
    assert findings(stae("verify", files, "--json")) == {
        ("foreign", "other.safetensors"), ("damaged", "empty.safetensors")
    }  # fmt: skip


def test_what_a_run_left(stae, photos, tiny, tmp_path):
    out = tmp_path / "out"
    (photos / "broken.png").write_bytes(b"no image")
    (photos / "sub" / "broken.png").write_bytes(b"no image")
    args = ["encode", photos, out, "--weights", tiny]
    for rank in range(2):
        stae(*args, "--unit-rank", rank, "--unit-count", 2)
    (out / "sub" / ".stae-elsewhere-123-0123abcd.tmp").write_bytes(b"half")
    left = ("temporary", "sub/.stae-elsewhere-123-0123abcd.tmp")
    alone = stae("verify", out, "--json")
    assert findings(alone) == {left, ("failed", "broken.png"), ("failed", "sub/broken.png")}
    ran = stae("verify", out, "--against", photos, "--json")
    assert findings(ran) == {left, ("missing", "broken.png"), ("missing", "sub/broken.png")}
    assert "the last run says" in ran.err
    (out / "failures-1-of-2.jsonl").write_text('{"source": "x')
    assert ("failed", "failures-1-of-2.jsonl") in findings(stae("verify", out, "--json"))


def test_a_manifest_that_is_wrong(stae, photos, tiny, tmp_path):
    latents = tmp_path / "latents"
    stae("encode", photos, latents, "--weights", tiny, "--shard-size", 4)
    manifest = latents / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[0]["shard"] = "shard-00009.safetensors"
    rows[1]["key"] = "not/there"
    left_out = rows.pop(2)["key"]
    lines = [json.dumps(row) for row in rows]
    manifest.write_text("\n".join([*lines, lines[-1], "{"]) + "\n")
    ran = stae("verify", latents, "--json")
    assert {kind for kind, _ in findings(ran)} == {"manifest"}
    reasons = [row["reason"] for row in ran.json["findings"]]
    assert sum("shard-00009" in reason for reason in reasons) == 1
    assert sum("`not/there`" in reason and "in none" in reason for reason in reasons) == 1
    assert sum(f"no manifest lists `{left_out}`" in reason for reason in reasons) == 1
    assert sum("twice" in reason for reason in reasons) == 1
    assert sum("cannot be read" in reason for reason in reasons) == 1
    manifest.unlink()
    assert findings(stae("verify", latents, "--json")) == {("manifest", "manifest.jsonl")}
    stae("encode", photos, latents, "--weights", tiny, "--shard-size", 4)
    assert findings(stae("verify", latents, "--json")) == set()


def test_a_key_that_is_called_like_its_shard(stae, tiny, tmp_path):
    photo = tmp_path / "photos" / "shard-00000.png"
    photo.parent.mkdir()
    Image.fromarray(noise(20, 30)).save(photo)
    stae("encode", photo.parent, tmp_path / "out", "--weights", tiny, "--shard-size", 4)
    assert findings(stae("verify", tmp_path / "out", "--against", photo.parent, "--json")) == set()
    (tmp_path / "out" / "stae.json").unlink()
    again = stae("encode", photo.parent, tmp_path / "out", "--weights", tiny, "--shard-size", 4)
    assert (again.code, again.err.count("skipped 1")) == (0, 1)


def test_a_tar_and_extensions_that_were_kept(stae, tiny, tmp_path):
    photos = write_photos(tmp_path / "photos", 4)
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for path in sorted(photos.rglob("*.png")):
            tar.add(path, path.name)
    Image.fromarray(noise(20, 20)).save(photos / "p0.jpg")
    sources = [photos, tmp_path / "set.tar"]
    out = tmp_path / "out"
    assert stae("encode", *sources, out, "--weights", tiny, "--keep-extension").code == 0
    against = [word for source in sources for word in ("--against", source)]
    ran = stae("verify", out, *against, "--json")
    assert findings(ran) == set()
    assert ran.json["sources"] == 9
    found = findings(stae("verify", out, "--against", photos, "--json"))
    assert {kind for kind, _ in found} == {"orphaned"}
    os.utime(tmp_path / "set.tar", ns=(1, 1))
    found = findings(stae("verify", out, *against, "--json"))
    assert found == {("stale", f"set/p{number}.png.safetensors") for number in range(4)}


def test_an_empty_dest_misses_everything(stae, photos, tmp_path):
    (tmp_path / "out").mkdir()
    found = findings(stae("verify", tmp_path / "out", "--against", photos, "--json"))
    assert sum(kind == "missing" for kind, _ in found) == 9


def test_many_findings_are_counted_and_not_all_printed(stae, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("stae_cli.cli.verify.SHOWN", 2)
    (tmp_path / "out").mkdir()
    ran = stae("verify", tmp_path / "out", "--against", photos)
    assert ran.err.count("error: missing") == 2
    assert "and 7 more that are missing" in ran.err


def test_a_second_run_mends_what_was_found(stae, photos, latents, tiny):
    shards = ["--shard-size", 4] if list(latents.glob("shard-*")) else []
    victim = sorted(latents.glob("*.safetensors"))[0]
    victim.write_bytes(victim.read_bytes()[:-7])
    Image.fromarray(noise(30, 30, seed=5)).save(photos / "p5.png")
    assert stae("verify", latents, "--against", photos).code == 3
    assert stae("encode", photos, latents, "--weights", tiny, *shards).code == 0
    assert findings(stae("verify", latents, "--against", photos, "--json")) == set()


def test_a_damaged_record(stae, files):
    (files / "stae.json").write_text("{}")
    assert findings(stae("verify", files, "--json")) == {("record", "stae.json")}


def test_a_record_that_says_nonsense(stae, photos, files):
    record = json.loads((files / "stae.json").read_text())
    (files / "stae.json").write_text(json.dumps(record | {"weights_sha256": 5, "prep": [1]}))
    assert findings(stae("verify", files, "--json")) == {("record", "stae.json")}


def test_a_copy_under_a_wrong_name_does_not_hide_its_original(stae, photos, files, tmp_path):
    (files / "p3.safetensors").write_bytes((files / "p2.safetensors").read_bytes())
    os.utime(photos / "p2.png", ns=(1, 1))
    found = findings(stae("verify", files, "--against", photos, "--json"))
    assert found == {
        ("misnamed", "p3.safetensors"), ("missing", "p3.png"), ("stale", "p2.safetensors")
    }  # fmt: skip


def test_wrong_arguments(stae, photos, files, tiny, tmp_path):
    stae("verify", tmp_path / "absent").assert_fails(2, "absent")
    stae("verify", files / "p0.safetensors").assert_fails(2, "is a file")
    stae("verify", files, "--against", tmp_path / "absent").assert_fails(2, "absent")
    (tmp_path / "copy").mkdir()
    copy = shutil.copy(photos / "p0.png", tmp_path / "copy")
    stae("verify", files, "--against", photos, "--against", copy).assert_fails(2, "same key")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        with tarfile.open(tmp_path / folder / "set.tar", "w") as tar:
            tar.add(photos / "p0.png", "p0.png")
    twice = ["--against", tmp_path / "a", "--against", tmp_path / "b"]
    stae("verify", files, *twice).assert_fails(2, "set/p0.png", "same key")
    stae("decode", files, tmp_path / "pictures", "--weights", tiny)
    stae("verify", tmp_path / "pictures").assert_fails(1, "pictures, not latents")
    assert json.loads((files / "stae.json").read_text())["kind"] == "latents"


def test_a_sample_encoded_again_has_the_same_bytes(stae, photos, latents, tiny):
    args = ["verify", latents, "--against", photos, "--weights", tiny, "--device", "cpu", "--json"]
    ran = stae(*args, "--reencode", 4)
    assert findings(ran) == set()
    assert [row["equal"] for row in ran.json["reencoded"]] == [True] * 4
    assert "encoded 4 again: 4 with the same bytes" in stae(*args[:-1], "--reencode", 4).out
    keys = [row["key"] for row in ran.json["reencoded"]]
    assert keys == [row["key"] for row in stae(*args, "--reencode", 4).json["reencoded"]]
    others = [stae(*args, "--reencode", 4, "--seed", n).json["reencoded"] for n in (1, 2)]
    assert any({row["key"] for row in rows} != set(keys) for rows in others)
    assert len(stae(*args, "--reencode", 100).json["reencoded"]) == 9


def test_a_latent_that_only_encoding_again_can_tell_is_wrong(stae, photos, files, tiny):
    latent, info = read_latent(files / "p4.safetensors")
    wrong = latent.copy()
    wrong[0] += np.float16(0.1) * np.abs(latent).max()
    write_latent(files / "p4.safetensors", wrong, info)
    args = ["verify", files, "--against", photos, "--weights", tiny, "--json"]
    assert findings(stae(*args)) == set()
    ran = stae(*args, "--reencode", 9)
    assert findings(ran) == {("differs", "p4.safetensors")}
    assert sum(row["equal"] for row in ran.json["reencoded"]) == 8


def test_another_precision_is_within_the_tolerance(stae, photos, files, tiny):
    args = ["verify", files, "--against", photos, "--weights", tiny, "--reencode", 9, "--json"]
    ran = stae(*args, "--dtype", "bfloat16")
    assert findings(ran) == set()
    assert max(row["difference"] for row in ran.json["reencoded"]) > 0


def test_encoding_again_knows_every_preparation(stae, photos, tiny, tmp_path):
    options = ["--square", 24, "--background", "red", "--edges", "crop", "--save-dtype", "float32"]
    stae("encode", photos, tmp_path / "out", "--weights", tiny, *options)
    ran = stae(
        "verify",
        tmp_path / "out",
        "--against",
        photos,
        "--weights",
        tiny,
        "--reencode",
        3,
        "--json",
    )
    assert findings(ran) == set()
    assert [row["equal"] for row in ran.json["reencoded"]] == [True] * 3


@pytest.mark.parametrize(
    "prep",
    ['{"max_pixels":-1}', '{"short_side":8.5}', '{"square":0}', '{"background":[]}'],
)
def test_a_preparation_that_cannot_be_is_a_finding(stae, photos, files, tiny, tmp_path, prep):
    latent, info = read_latent(files / "p4.safetensors")
    (tmp_path / "crafted").mkdir()
    write_latent(tmp_path / "crafted" / "p4.safetensors", latent, replace(info, prep=prep))
    args = ["verify", tmp_path / "crafted", "--against", photos / "p4.png", "--weights", tiny]
    ran = stae(*args, "--reencode", 1, "--json")
    assert findings(ran) == {("record", "stae.json"), ("unreadable", "p4.safetensors")}
    assert "unknown preparation" in ran.err


def test_encoding_again_needs_the_sources_and_the_weights(stae, photos, files, other_tiny):
    stae("verify", files, "--reencode", 3).assert_fails(2, "--against")
    args = ["verify", files, "--against", photos, "--reencode", 3]
    stae(*args).assert_fails(1, "tiny.safetensors", "--weights")
    stae(*args, "--weights", other_tiny).assert_fails(1, "tiny.safetensors", "other.safetensors")


def test_a_signal_ends_it(stae, files, monkeypatch):
    def struck(entry, reserve):
        if entry.key == "p3.safetensors":  # once: a second signal would end the tests
            os.kill(os.getpid(), signal.SIGINT)
        return check_file(entry, reserve)

    monkeypatch.setattr("stae_cli.verify.verify.check_file", struck)
    ran = stae("verify", files, "--json")
    assert (ran.code, ran.out) == (130, "")

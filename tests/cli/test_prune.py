"""Sources that are gone or can no longer be read: their latents are named, kept, or removed."""

import json
import tarfile

import pytest
from safetensors import safe_open

from stae_cli import LatentDataset
from tests.pictures import write_photos

pytestmark = pytest.mark.usefixtures("same_codec")


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


@pytest.fixture
def encode(stae, photos, tiny, tmp_path):
    def run(*options, source=photos):
        return stae("encode", source, tmp_path / "out", "--weights", tiny, "--json", *options)

    return run


def keys(dest):
    """The keys of every file, in its order."""
    found = {}
    for path in sorted(dest.rglob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            pictures = file.metadata().get("pictures")
        found[path.relative_to(dest).as_posix()] = list(json.loads(pictures)) if pictures else []
    return found


def times(dest):
    return {path.name: path.stat().st_mtime_ns for path in dest.rglob("*.safetensors")}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_source_that_is_gone_costs_one_shard(stae, encode, photos, tmp_path):
    out, shards = tmp_path / "out", ["--shard-size", "3"]
    assert encode(*shards).code == 0
    before, whole = times(out), keys(out)
    (photos / "p1.png").unlink()
    (photos / "p6.png").unlink()

    ran = encode(*shards)
    gone = ["shard-00000.safetensors:p1", "shard-00002.safetensors:p6"]
    assert (ran.code, ran.json["skipped"], ran.json["done"]) == (0, 7, 0)
    assert ran.json["orphaned"] == gone
    assert "--prune" in ran.err
    assert (times(out), keys(out)) == (before, whole)
    with pytest.warns(UserWarning, match="2, such as `shard-00000.safetensors:p1`.*--prune"):
        LatentDataset(out)

    ran = encode(*shards, "--prune")
    assert (ran.code, ran.json["skipped"], ran.json["pruned"]) == (0, 7, gone)
    assert times(out)["shard-00001.safetensors"] == before["shard-00001.safetensors"]
    rest = {name: [k for k in inside if k not in ("p1", "p6")] for name, inside in whole.items()}
    assert keys(out) == rest
    assert {row["key"] for row in lines(out / "manifest.jsonl")} == {
        key for each in rest.values() for key in each
    }
    assert len(LatentDataset(out)) == 7  # without a warning

    after = times(out)
    ran = encode(*shards)  # and nothing moves up later
    assert (ran.json["skipped"], ran.json["done"], ran.json["orphaned"]) == (7, 0, [])
    assert times(out) == after
    assert stae("verify", out, "--against", photos).code == 0


def test_a_whole_shard_whose_sources_are_gone(encode, photos, tmp_path):
    out, shards = tmp_path / "out", ["--shard-size", "3"]
    assert encode(*shards).code == 0
    for name in "p3", "p4", "p5":
        (photos / f"{name}.png").unlink()
    assert len(encode(*shards).json["orphaned"]) == 3
    before = times(out)
    assert encode(*shards, "--prune").json["skipped"] == 6
    del before["shard-00001.safetensors"]
    assert times(out) == before
    write_photos(tmp_path / "more", count=3)
    for path in (tmp_path / "more").glob("*.png"):
        path.rename(photos / f"z{path.name}")
    assert encode(*shards).json["failed"] == 0
    assert len(LatentDataset(out)) == len(list(photos.rglob("*.png")))


def test_files_of_sources_that_are_gone(encode, photos, tmp_path):
    out = tmp_path / "out"
    assert encode().code == 0
    (photos / "p1.png").unlink()
    ran = encode()
    assert (ran.code, ran.json["orphaned"]) == (0, ["p1.safetensors"])
    assert lines(out / "orphans.jsonl")[0]["source"] == "p1.png"
    assert (out / "p1.safetensors").exists()
    assert encode("--prune").json["pruned"] == ["p1.safetensors"]
    assert not (out / "p1.safetensors").exists()
    assert not (out / "orphans.jsonl").exists()


def test_sources_of_other_runs_are_not_gone(encode, photos, tmp_path):
    others = write_photos(tmp_path / "others", count=3)
    for path in list(others.rglob("*.png")):
        path.rename(path.with_name(f"other-{path.name}"))
    assert encode().code == 0
    assert encode(source=others).json["orphaned"] == []
    assert encode("--prune", source=photos / "p1.png").json["pruned"] == []
    assert encode("--prune").json["pruned"] == []
    assert len(LatentDataset(tmp_path / "out")) == 12


def test_a_moved_folder_prunes_its_own_latents_alone(encode, photos, tmp_path):
    others = write_photos(tmp_path / "others", count=3)
    for path in list(others.rglob("*.png")):
        path.rename(path.with_name(f"other-{path.name}"))
    assert encode().code == encode(source=others).code == 0
    moved = photos.rename(tmp_path / "moved")
    (moved / "p1.png").unlink()
    ran = encode("--prune", source=moved)
    assert (ran.json["pruned"], ran.json["skipped"]) == (["p1.safetensors"], 8)


def test_a_share_cannot_prune(encode):
    encode("--prune", "--unit-rank", 0, "--unit-count", 2).assert_fails(2, "--prune")


@pytest.mark.parametrize("layout", [[], ["--shard-size", "3"]], ids=["files", "shards"])
def test_a_source_that_cannot_be_read_keeps_its_latent(stae, encode, photos, tmp_path, layout):
    assert encode(*layout).code == 0
    (photos / "p1.png").write_bytes(b"\x89PNG no more")
    ran = encode(*layout)
    assert ran.code == 3
    (failure,) = ran.json["failures"]
    assert failure["reason"].endswith("the latent that was there stays")
    assert len(LatentDataset(tmp_path / "out")) == 9
    ran = stae("verify", tmp_path / "out", "--json")
    assert ran.json["counts"] == {"failed": 1}
    assert "the latent that was there stays" in ran.err


def test_failures_of_other_sources_stay_listed(encode, photos, tmp_path):
    listed = tmp_path / "out" / "failures.jsonl"
    (photos / "bad.png").write_bytes(b"no picture")
    assert encode().code == 3
    others = write_photos(tmp_path / "others", count=2)
    for path in list(others.rglob("*.png")):
        path.rename(path.with_name(f"other-{path.name}"))
    assert encode(source=others).code == 0
    assert encode(source=photos / "p1.png").code == 0
    assert [line["source"] for line in lines(listed)] == ["bad.png"]
    (photos / "bad.png").unlink()
    assert encode().code == 0
    assert not listed.exists()


def test_many_failures_of_one_kind_are_not_all_printed(encode, photos):
    for number in range(30):
        (photos / f"bad{number:02}.png").write_bytes(b"")
    ran = encode()
    assert ran.err.count(": empty file") == 21
    assert "and 10 more: empty file" in ran.err
    assert len(ran.json["failures"]) == 30


def test_a_member_that_its_tar_lost(encode, photos, tmp_path):
    def pack(*names):
        with tarfile.open(tmp_path / "tars" / "000.tar", "w") as tar:
            for name in names:
                tar.add(photos / name, name)

    out, source = tmp_path / "out", tmp_path / "tars"
    source.mkdir()
    pack("p0.png", "p1.png", "p2.png")
    assert encode(source=source).code == 0
    pack("p0.png", "p2.png")
    ran = encode(source=source)
    assert (ran.code, ran.json["orphaned"]) == (0, ["000/p1.safetensors"])
    with pytest.warns(UserWarning, match="000/p1"):
        assert len(LatentDataset(out)) == 3
    assert encode("--prune", source=source).json["pruned"] == ["000/p1.safetensors"]
    assert len(LatentDataset(out)) == 2

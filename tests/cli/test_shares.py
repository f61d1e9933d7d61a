"""Ranks: processes that share a run do together what one does, and nothing twice."""

import json
import tarfile

import pytest
from PIL import Image

from stae_cli import LatentDataset
from stae_cli.latents.listing import list_latents
from stae_cli.runs import units
from tests.pictures import noise, write_photos

LAYOUTS = pytest.mark.parametrize("options", [(), ("--shard-size", 2)], ids=["files", "shards"])


@pytest.fixture(autouse=True)
def _small_units(monkeypatch):
    monkeypatch.setattr(units, "UNIT", 2)
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def source(tmp_path):
    """Nine photos, and four more in two tars."""
    photos = write_photos(tmp_path / "source")
    for tar in ("t", "u"):
        with tarfile.open(photos / f"{tar}.tar", "w") as file:
            file.add(photos / "p0.png", "a.png")
            file.add(photos / "p1.png", "b.png")
    return photos


@pytest.fixture
def encode(stae, source, tiny, tmp_path):
    def run(*options, dest="out"):
        return stae("encode", source, tmp_path / dest, "--weights", tiny, *options, "--json")

    return run


def content(dest):
    """Every output's bytes; the parts of a run may be written in any order."""
    return {p.relative_to(dest).as_posix(): p.read_bytes() for p in dest.rglob("*.safetensors")}


def lines(dest, pattern):
    return [json.loads(line) for p in dest.glob(pattern) for line in p.read_text().splitlines()]


@LAYOUTS
def test_two_ranks_do_what_one_does_and_nothing_twice(encode, tmp_path, options):
    assert encode(*options, dest="whole").json["done"] == 13
    first = encode(*options, "--unit-rank", 0, "--unit-count", 2)
    after_first = content(tmp_path / "out")
    second = encode(*options, "--unit-rank", 1, "--unit-count", 2)
    assert (first.json["done"], second.json["done"]) == (7, 6)
    assert first.json["skipped"] + second.json["skipped"] == 0
    assert 0 < len(after_first) < len(content(tmp_path / "out"))
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    again = [encode(*options, "--unit-rank", rank, "--unit-count", 2).json for rank in (0, 1)]
    assert [run["done"] for run in again] == [0, 0]
    assert sum(run["skipped"] for run in again) == 13
    assert encode(*options).json["skipped"] == 13  # as do other numbers of processes


@LAYOUTS
@pytest.mark.parametrize("names", [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")])
def test_launchers_say_it_by_their_environment(encode, tmp_path, monkeypatch, names, options):
    encode(*options, dest="whole")
    monkeypatch.setenv(names[1], "3")
    done = []
    for rank in range(3):
        monkeypatch.setenv(names[0], str(rank))
        done.append(encode(*options).json["done"])
    assert sum(done) == 13
    assert min(done) > 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_options_go_before_the_environment(encode, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert encode("--unit-rank", 0, "--unit-count", 1).json["done"] == 13


def test_failures_and_manifests_are_per_rank_until_the_count_changes(encode, source, tmp_path):
    (source / "p0.png").write_bytes(b"no picture")
    (source / "sub" / "p8.png").write_bytes(b"none either")
    out, shards = tmp_path / "out", ("--shard-size", 3)
    for rank in (0, 1):
        assert encode(*shards, "--unit-rank", rank, "--unit-count", 2).code in (0, 3)
    names = sorted(path.name for path in out.glob("*.jsonl"))
    assert names == [
        "failures-0-of-2.jsonl", "manifest-0-of-2.jsonl", "manifest-1-of-2.jsonl"
    ]  # fmt: skip
    failed = {row["source"] for row in lines(out, "failures*")}
    assert failed == {"p0.png", "sub/p8.png"}
    rows = lines(out, "manifest*")
    stored = {latent.key: latent.file.key for latent in list_latents([out]).latents}
    assert len(rows) == len(stored) == 11
    assert {row["key"]: row["shard"] for row in rows} == stored
    assert len(LatentDataset(out)) == 11
    assert encode(*shards).json["failed"] == 2
    assert sorted(p.name for p in out.glob("*.jsonl")) == ["failures.jsonl", "manifest.jsonl"]
    Image.fromarray(noise(9, 9)).save(source / "p0.png")
    Image.fromarray(noise(9, 9)).save(source / "sub" / "p8.png")
    for rank in (0, 1):
        assert encode(*shards, "--unit-rank", rank, "--unit-count", 2).code == 0
    assert sorted(p.name for p in out.glob("*.jsonl")) == names[1:]
    assert len(lines(out, "manifest*")) == 13


def test_a_rank_without_work_says_so_with_an_empty_manifest(encode, tmp_path):
    ran = encode("--shard-size", 100, "--unit-rank", 7, "--unit-count", 9)
    assert (ran.code, ran.json["done"]) == (0, 0)
    assert (tmp_path / "out" / "manifest-7-of-9.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    "options",
    [("--unit-rank", 0), ("--unit-count", 2), ("--unit-rank", 2, "--unit-count", 2),
     ("--unit-rank", -1, "--unit-count", 2), ("--unit-rank", 0, "--unit-count", 0)],
)  # fmt: skip
def test_parts_that_do_not_exist_are_refused(encode, tmp_path, options):
    encode(*options).assert_fails(2)
    assert not (tmp_path / "out").exists()


def test_an_environment_that_makes_no_sense_is_refused(encode, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "two")
    encode().assert_fails(2, "RANK", "two")
    monkeypatch.setenv("RANK", "2")
    encode().assert_fails(2, "rank 2")

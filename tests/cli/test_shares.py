"""Ranks: processes that share a run do together what one does, and nothing twice."""

import json
import tarfile

import pytest
from PIL import Image

from stae_cli import LatentDataset
from stae_cli.cli.engine import local_device
from stae_cli.latents.listing import list_latents
from stae_cli.runs import units
from tests.pictures import noise, write_photos

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}
SRUN = {  # what it sets in each task; sbatch alone sets the first three
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
}
OTHERS = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "SLURM_PTY_PORT")
LAYOUTS = pytest.mark.parametrize("options", [(), ("--shard-size", 2)], ids=["files", "shards"])


@pytest.fixture(autouse=True)
def _small_units(monkeypatch, same_codec):
    monkeypatch.setattr(units, "UNIT", 2)
    for name in (*TORCHRUN, *SRUN, *OTHERS):
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
@pytest.mark.parametrize(
    ("launcher", "names", "said_by"),
    [(TORCHRUN, ("RANK", "WORLD_SIZE"), "RANK and WORLD_SIZE say"),
     (SRUN, ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"), "Slurm says")],
)  # fmt: skip
def test_launchers_say_it_by_their_environment(
    encode, tmp_path, monkeypatch, options, launcher, names, said_by
):
    encode(*options, dest="whole")
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(names[1], "3")
    done = []
    for rank in range(3):
        monkeypatch.setenv(names[0], str(rank))
        ran = encode(*options)
        done.append(ran.json["done"])
        assert f"part {rank} of 3 (as {said_by})" in ran.err
        assert f"part {rank} of 3: encoded {done[-1]}" in ran.err
        part = ran.json["part"]
        assert (part["rank"], part["count"]) == (rank, 3)
        assert said_by.startswith(part["from"])
        assert part["unfinished"] == list(range(rank + 1, 3))
    assert sum(done) == 13
    assert min(done) > 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_STEP_ID": None, "SLURM_STEP_NUM_TASKS": None},  # sbatch without srun
        {"SLURM_STEP_ID": "4294967291"},  # the step of a batch script
        {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},  # salloc's shell
        {"SLURM_STEP_NUM_TASKS": "1"},  # srun --ntasks=1 in a larger job
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PTY_PORT": "34889"},  # srun --pty bash
        {"WORLD_SIZE": "1", "RANK": "0", "SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_one_process_of_a_job_does_everything(encode, monkeypatch, environment):
    for name, value in (SRUN | environment).items():
        if value is not None:
            monkeypatch.setenv(name, value)
    ran = encode()
    assert (ran.json["done"], ran.json["part"]) == (13, None)
    assert "part 0" not in ran.err


def test_the_shell_of_srun_is_not_one_of_its_tasks(encode, monkeypatch):
    """`srun --ntasks=4 --pty bash` starts one; what `srun` starts from there has no terminal."""
    for name, value in (SRUN | {"SLURM_PTY_PORT": "34889"}).items():
        monkeypatch.setenv(name, value)
    assert encode().json["part"]["count"] == 4
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert encode().json["part"] is None


@pytest.mark.parametrize(
    ("environment", "device"),
    [({"LOCAL_RANK": "5"}, "cuda:1"), (SRUN | {"SLURM_LOCALID": "2"}, "cuda:2"),
     ({"SLURM_LOCALID": "2"}, "cuda")],
)  # fmt: skip
def test_each_process_of_a_machine_takes_its_own_device(monkeypatch, environment, device):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert local_device("cuda") == device
    assert local_device("cpu") == "cpu"


def test_what_a_shell_or_a_batch_script_has_exported_is_refused(encode, tmp_path, monkeypatch):
    """RANK and WORLD_SIZE of nobody, or of another launch than that of this process."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    encode().assert_fails(2, "part 0 of 4", "unset", "--unit-rank 0 --unit-count 4")
    for name, value in (SRUN | {"SLURM_PROCID": "3", "MASTER_ADDR": "node1"}).items():
        monkeypatch.setenv(name, value)
    encode().assert_fails(2, "part 0 of 4", "Slurm says part 3 of 4")
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("RANK", "3")
    assert encode("--quiet").err.strip() == "part 3 of 4 (as RANK and WORLD_SIZE say)"


def test_options_go_before_the_environment(encode, monkeypatch):
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
        "failures-0-of-2.jsonl", "manifest-0-of-2.jsonl", "manifest-1-of-2.jsonl",
        "part-0-of-2.jsonl", "part-1-of-2.jsonl",
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

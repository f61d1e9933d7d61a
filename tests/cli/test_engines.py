"""Runs whose network runs in several processes: one for each device, actors of Ray, torchrun."""

import gc
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from stae_cli import LatentDataset, __version__
from stae_cli.checkpoints.checkpoint import read_checkpoint
from stae_cli.cli.main import main
from stae_cli.images.resize import Prep
from stae_cli.latents.run_record import settle_record
from stae_cli.runs import units
from stae_cli.runs.encode_plan import EncodeSettings, KnownOutputs
from stae_cli.runs.encoding import EncodeTask
from stae_cli.runs.pipeline import Pipeline
from stae_cli.runs.workers import CodecMaker, Worker
from stae_cli.storage.destination import FolderDestination
from stae_cli.storage.sources import list_sources
from tests.launcher import wait_for
from tests.pictures import noise, write_photos

LAYOUTS = pytest.mark.parametrize("options", [(), ("--shard-size", 2)], ids=["files", "shards"])
MANY = 900  # so that none is done before it is struck
NO_TOKEN = {"RAY_AUTH_MODE": "disabled"}  # a cluster wants one, and its drivers need to know
RAY = ("--engine", "ray", "--max-actors", "2")
posix = pytest.mark.skipif(os.name == "nt", reason="no such signals")


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Nine photos and what is none; units of two."""
    monkeypatch.setattr(units, "UNIT", 2)
    monkeypatch.setattr("stae_cli.runs.decode.PART", 2)
    photos = write_photos(tmp_path / "source")
    (photos / "broken.png").write_bytes(b"\x89PNG and nothing else")
    return photos


@pytest.fixture
def quick_start(monkeypatch):
    """Processes fork from one that has torch already: tests of their start do without this."""
    forks = multiprocessing.get_context("forkserver" if os.name != "nt" else "spawn")
    if os.name != "nt":
        forks.set_forkserver_preload(["pytest", "stae_cli.runs.encode", "stae_cli.codec.codec"])
    monkeypatch.setattr(
        "stae_cli.runs.local_workers.multiprocessing",
        SimpleNamespace(get_context=lambda _method: forks),
    )


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Some hundred tiny images, of which one is broken."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(MANY):
        pixels = noise(48 + number % 9, 40 + number % 7, seed=number)
        Image.fromarray(pixels).save(folder / f"p{number:04}.png")
    (folder / "p0300.png").write_bytes(b"\x89PNG and nothing else")
    return folder


@pytest.fixture(scope="module")
def whole(many, tiny, tmp_path_factory):
    """What one process makes of them."""
    out = tmp_path_factory.mktemp("whole")
    assert main(["encode", str(many), str(out), "--weights", str(tiny), "--quiet"]) == 3
    return content(out)


@contextmanager
def started(*arguments, program=("-m", "stae_cli"), **environment):
    """A process with its own group, as of a terminal; gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=os.name != "nt",
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def content(dest):
    return {p.relative_to(dest).as_posix(): p.read_bytes() for p in dest.rglob("*.safetensors")}


def lines(path):
    return sorted(path.read_text().splitlines())


def frozen(process, dest):
    """The outputs of a run that stands still in its middle, until it is told to go on."""
    wait_for(lambda: outputs_of(dest, 20))
    os.killpg(process.pid, signal.SIGSTOP)
    return outputs_of(dest)


def outputs_of(dest, least=0):
    """Whether so many are there; their times."""
    found = {path: path.stat().st_mtime_ns for path in dest.rglob("*.safetensors")}
    return found if len(found) >= least else None


def descendants(ancestor):
    """(process, command line) of all that a process started, and what these did."""
    parents = {}
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            with suppress(OSError):
                state = (place / "stat").read_text().rpartition(")")[2].split()
                command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                parents[int(place.name)] = (int(state[1]), command)
    below = {ancestor}
    for _ in range(9):  # generations
        below |= {process for process, (parent, _) in parents.items() if parent in below}
    return {process: parents[process][1] for process in below - {ancestor} if process in parents}


def are_gone(processes):
    return not any(Path(f"/proc/{process}").exists() for process in processes)


on_linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")


@LAYOUTS
@pytest.mark.usefixtures("quick_start")
def test_two_processes_make_what_one_does(stae, source, tiny, tmp_path, options):
    encode = ("encode", source, "--weights", tiny, *options, "--json")
    one = stae(*encode[:2], tmp_path / "one", *encode[2:])
    two = stae(*encode[:2], tmp_path / "two", *encode[2:], "--device", "cpu,cpu")
    assert (one.code, two.code) == (3, 3)
    for same in ("done", "skipped", "failed", "failures"):
        assert one.json[same] == two.json[same]
    assert two.json["device"] == "cpu,cpu"
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert (tmp_path / "two" / "failures.jsonl").exists()
    assert "broken.png: not an image" in two.err
    if options:
        manifests = [lines(tmp_path / name / "manifest.jsonl") for name in ("one", "two")]
        assert manifests[0] == manifests[1]
    assert len(LatentDataset(tmp_path / "two")) == 9
    again = stae(*encode[:2], tmp_path / "two", *encode[2:], "--device", "cpu,cpu")
    assert (again.json["done"], again.json["skipped"], again.json["failed"]) == (0, 9, 1)
    pictures = [tmp_path / "pictures", tmp_path / "more pictures"]
    for folder, device in zip(pictures, ("cpu", "cpu,cpu"), strict=True):
        ran = stae("decode", tmp_path / "one", folder, "--device", device, "--weights", tiny)
        assert ran.code == 0, ran.err
    decoded = [{p.name: p.read_bytes() for p in folder.rglob("*.png")} for folder in pictures]
    assert len(decoded[0]) == 9
    assert decoded[0] == decoded[1]


@pytest.mark.usefixtures("quick_start")
def test_processes_share_latents_of_other_programs(stae, tiny, tmp_path, monkeypatch):
    latents = np.random.default_rng(0).standard_normal((5, 16, 4, 6), np.float32)
    monkeypatch.setattr("stae_cli.runs.decode.PART", 2)
    np.savez_compressed(tmp_path / "a.npz", latents)
    torch.save(torch.from_numpy(latents[:3]).bfloat16(), tmp_path / "b.pt")
    for name, device in (("one", "cpu"), ("two", "cpu,cpu")):
        arguments = ["decode", tmp_path / "a.npz", tmp_path / "b.pt", tmp_path / name]
        options = ("--weights", tiny, "--device", device, "--shift", 0.5, "--json")
        ran = stae(*arguments, *options)
        assert (ran.code, ran.json["done"]) == (0, 8), ran.err
    for path in (tmp_path / "one").rglob("*.png"):
        other = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert path.read_bytes() == other.read_bytes()


@pytest.mark.usefixtures("quick_start")
@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_the_log_says_what_is_skipped_and_why_something_is_encoded_again(
    stae, source, tiny, tmp_path, caplog, device
):
    """What another process logs reaches the log of the first."""
    encode = ("encode", source, tmp_path / "out", "--weights", tiny, "--device", device)
    stae(*encode)
    os.utime(source / "p1.png", ns=(1, 1))
    (tmp_path / "out" / "p2.safetensors").write_bytes(b"")
    caplog.set_level("DEBUG", "stae_cli")
    stae(*encode)
    said = [record.getMessage() for record in caplog.records]
    assert "skipping p0.png: encoded already" in said
    assert "encoding p1.png again: it has changed since it was encoded" in said
    assert [line for line in said if "p2.safetensors` is" in line and "made again" in line]
    assert len([line for line in said if "device cpu, float32" in line]) in (1, 2)
    assert len([line for line in said if line.startswith("started process")]) == 2 * (
        device != "cpu"
    )


@pytest.mark.usefixtures("quick_start")
def test_a_strict_run_of_two_processes_stops(stae, source, tiny, tmp_path):
    ran = stae(
        "encode", source, tmp_path / "out", "--weights", tiny, "--strict", "--device", "cpu,cpu"
    )
    ran.assert_fails(1, "broken.png", "--strict")
    assert "broken.png" in (tmp_path / "out" / "failures.jsonl").read_text()


@pytest.mark.usefixtures("quick_start")
def test_a_shard_of_other_sources_stops_two_processes_too(stae, source, tiny, tmp_path):
    encode = ("--weights", tiny, "--shard-size", 2, "--device", "cpu,cpu")
    stae("encode", source, tmp_path / "out", *encode)
    others = tmp_path / "others"
    others.mkdir()
    (others / "a.png").write_bytes((source / "p1.png").read_bytes())
    ran = stae("encode", others, tmp_path / "out", *encode)
    ran.assert_fails(1, "another DEST")


def test_what_workers_cannot_have_is_said(stae, source, tiny, tmp_path, monkeypatch):
    def encode(*options):
        return stae("encode", source, tmp_path / "out", "--weights", tiny, *options)

    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    encode("--device", "cuda:all").assert_fails(1, "cuda:all", "no CUDA device")
    encode("--device", "cpu,tpu").assert_fails(2, "tpu")
    encode("--device", "cuda:0,cuda:1").assert_fails(1, "cuda:", "--device cpu")
    encode("--max-actors", 2).assert_fails(2, "--engine ray")
    encode("--engine", "ray", "--device", "cuda:1").assert_fails(2, "cuda:1", "Ray")
    encode(*RAY, "--min-actors", 3).assert_fails(2, "`--min-actors 3`", "`--max-actors 2`")
    monkeypatch.setitem(sys.modules, "ray", None)
    encode("--engine", "ray").assert_fails(1, "ray", "stae[ray]")


@pytest.fixture
def task(tiny, tmp_path):
    """What a worker is told, and how it gets its codec."""
    checkpoint = read_checkpoint(tiny, name="tiny")
    destination = FolderDestination(tmp_path / "out")
    destination.prepare()
    sha = checkpoint.fingerprint
    task = EncodeTask(
        *(destination, EncodeSettings(Prep()), "tiny", sha, "float32", KnownOutputs()), threads=2
    )
    settle_record(destination, task.record, is_planned=lambda _: False, overwrite=False)
    return task, CodecMaker(lambda: checkpoint, sha, None, None)


def test_a_worker_elsewhere_refuses_what_is_not_the_same_there(task, other_tiny, tmp_path):
    task, maker = task
    unit = units.Unit(units.Layout(), lambda: iter(()))
    assert Worker(task, maker, "cpu")(unit).error is None
    other = CodecMaker(
        lambda: read_checkpoint(other_tiny, name="x"), task.weights_sha256, None, None
    )
    assert "another checkpoint" in Worker(task, other, "cpu")(unit).error.message
    named = replace(task, weights="another name of the same")
    assert Worker(named, maker, "cpu")(unit).error is None
    older = Worker(task, maker, "cpu", version="0.0.1")(unit).error
    assert "0.0.1" in older.message
    assert __version__ in older.message
    (tmp_path / "out" / "stae.json").unlink()  # as of another machine's folder of that name
    assert "not the same DEST" in Worker(task, maker, "cpu")(unit).error.message


def test_a_worker_that_stops_leaves_no_thread_waiting(task, tmp_path, monkeypatch):
    """Threads that wait for their turn to read would keep its process from its end."""
    task, maker = task
    monkeypatch.setattr(Pipeline, "read_bytes", 5000)
    photos = write_photos(tmp_path / "photos", count=40)
    (photos / "a.png").write_bytes(b"\x89PNG and nothing else")
    listing = list_sources([photos], None, suffixes=[".png"])
    planned = units.name_outputs(listing, units.Layout())
    (unit,) = units.listed_units(planned, units.Layout(), gaps={}, orphans={})
    strict = replace(task, settings=replace(task.settings, strict=True))
    gc.disable()
    try:
        tally = Worker(strict, maker, "cpu")(unit)
        assert "a.png" in tally.error.message
        assert not [t.name for t in threading.enumerate() if t.name.startswith(("read", "write"))]
    finally:
        gc.enable()


def test_an_error_nobody_thought_of_reaches_the_user(task):
    task, maker = task

    def find():
        raise RuntimeError("the unthinkable")
        yield

    tally = Worker(task, maker, "cpu")(units.Unit(units.Layout(), find))
    assert "RuntimeError: the unthinkable (test_engines.py" in tally.error.message


@posix
@on_linux
def test_a_run_goes_on_after_one_of_its_processes_was_killed(many, whole, tiny, tmp_path):
    """And all of them log to the same stream."""
    dest = tmp_path / "out"
    command = ("encode", many, dest, "--weights", tiny, "--device", "cpu,cpu")
    with started(*command) as process:
        before = frozen(process, dest)
        children = descendants(process.pid)
        os.kill(next(p for p, words in children.items() if "spawn_main" in words), signal.SIGKILL)
        os.killpg(process.pid, signal.SIGCONT)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 1, error
    assert "a process of the run died" in error
    assert "Traceback" not in error
    assert len(before) < MANY - 1
    with started(*command, "--verbose") as process:
        _, error = process.communicate(timeout=120)
    assert process.returncode == 3, error
    assert_completed(before, whole, dest)
    logged = error.splitlines()
    assert "info: one process on each of cpu, cpu" in logged
    assert sum(line.startswith("info: checkpoint tiny.safetensors, ") for line in logged) >= 2


@posix
@on_linux
@pytest.mark.usefixtures("quick_start")
def test_ctrl_c_ends_all_processes_in_good_order(stae, many, whole, tiny, tmp_path):
    dest = tmp_path / "out"
    command = ("encode", many, dest, "--weights", tiny, "--device", "cpu,cpu")
    with started(*command) as process:
        before = frozen(process, dest)
        children = descendants(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGCONT)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 130, error
        assert "Traceback" not in error
        wait_for(lambda: are_gone(children))
    assert len(outputs_of(dest)) < MANY - 1
    assert stae(*command).code == 3
    assert_completed(before, whole, dest)


@posix
@on_linux
def test_processes_end_with_the_one_that_started_them(many, tiny, tmp_path):
    dest = tmp_path / "out"
    with started("encode", many, dest, "--weights", tiny, "--device", "cpu,cpu") as process:
        frozen(process, dest)
        children = descendants(process.pid)
        process.kill()
        os.killpg(process.pid, signal.SIGCONT)
        process.wait()
        wait_for(lambda: are_gone(children))


@posix
@on_linux
def test_torchrun_with_a_killed_rank_is_completed_by_a_rerun(
    stae, many, whole, tiny, tmp_path, monkeypatch
):
    dest = tmp_path / "out"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command = ("encode", many, dest, "--weights", tiny)
    with started("-m", "stae_cli", *command, program=torchrun) as process:
        before = frozen(process, dest)
        ranks = [p for p, words in descendants(process.pid).items() if "stae_cli encode" in words]
        os.kill(ranks[0], signal.SIGKILL)
        os.killpg(process.pid, signal.SIGCONT)
        process.communicate(timeout=120)
        assert process.returncode != 0
    assert len(outputs_of(dest)) < MANY - 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    for rank in "01":  # as torchrun says it
        monkeypatch.setenv("RANK", rank)
        stae(*command)
    assert_completed(before, whole, dest)
    failures = [json.loads(line) for p in dest.glob("failures-*") for line in lines(p)]
    assert [failure["source"] for failure in failures] == ["p0300.png"]


@pytest.fixture(scope="module")
def cluster():
    """The address of a Ray cluster; skips where Ray itself cannot start."""
    pytest.importorskip("ray", reason="needs pip install 'stae[ray]'")
    program = ("-m", "ray.scripts.scripts", "start", "--head", "--block")
    options = ("--port=0", "--num-cpus=2", "--include-dashboard=false")
    with started(*options, program=program, **NO_TOKEN) as process:
        for line in process.stdout:
            if address := re.search("--address='(.+)'", line):
                break
        else:
            pytest.skip(f"Ray does not start on this machine: {process.communicate()}")
        yield address[1]


@posix
@on_linux
@pytest.mark.usefixtures("cluster")
def test_ray_completes_a_run_whose_actor_was_killed(many, whole, tiny, tmp_path):
    """Ray runs only for this command, as without a cluster."""
    dest = tmp_path / "out"
    command = ("encode", many, dest, "--weights", tiny, *RAY, "--json")
    with started(*command, RAY_ADDRESS="local") as process:
        before = wait_for(lambda: outputs_of(dest, 20))
        actors = {p for p, words in descendants(process.pid).items() if "ray::MapWorker" in words}
        os.kill(actors.pop(), signal.SIGKILL)
        out, error = process.communicate(timeout=120)
    assert process.returncode == 3, error
    assert len(before) < MANY - 1
    report = json.loads(out)
    assert report["done"] + report["skipped"] == MANY - 1
    assert report["failures"] == [{"source": "p0300.png", "reason": "not an image"}]
    (listed,) = map(json.loads, lines(dest / "failures.jsonl"))
    assert report["failures"] == [{name: listed[name] for name in ("source", "reason")}]
    assert content(dest) == whole
    assert "Traceback" not in error


@posix
def test_ray_makes_shards_and_pictures_alike(stae, source, tiny, tmp_path, cluster, launcher):
    weights, ray = ("--weights", tiny), (*RAY, "--ray-address", cluster)
    one, two = tmp_path / "one", tmp_path / "two"
    stae("encode", source, one, *weights, "--shard-size", 2)
    encode = ("encode", source, two, *weights, "--shard-size", 2, *ray)
    with launcher.running(*encode, log=tmp_path / "log", environment=NO_TOKEN) as process:
        assert process.wait() == 3, process.err
    assert content(one) == content(two)
    assert lines(one / "manifest.jsonl") == lines(two / "manifest.jsonl")
    pictures = [tmp_path / "pictures", tmp_path / "more"]
    stae("decode", one, pictures[0], *weights)
    decode = ("decode", one, pictures[1], *weights, *ray)
    with launcher.running(*decode, log=tmp_path / "log", environment=NO_TOKEN) as process:
        assert process.wait() == 0, process.err
    decoded = [{p.name: p.read_bytes() for p in folder.rglob("*.png")} for folder in pictures]
    assert decoded[0] == decoded[1]


@posix
@pytest.mark.usefixtures("cluster")
def test_a_ray_that_is_not_there_is_said(source, tiny, tmp_path, launcher):
    command = ("encode", source, tmp_path / "out", "--weights", tiny, *RAY)
    absent = ("--ray-address", "127.0.0.1:1")
    with launcher.running(*command, *absent, log=tmp_path / "log") as process:
        assert process.wait() == 1, process.err
        assert "cannot reach Ray at `127.0.0.1:1`" in process.err
        assert "Traceback" not in process.err


def assert_completed(before, whole, dest):
    """All is there, and nothing was done twice."""
    assert content(dest) == whole
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert not [p for p in dest.rglob("*") if p.name.endswith(".tmp")]

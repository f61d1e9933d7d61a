"""`stae train` as users run it: a checkpoint out of photos, whatever happens in between."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from stae_cli.checkpoints.checkpoint import fingerprint, read_checkpoint, write_checkpoint
from stae_cli.errors import StaeError
from stae_cli.network.architecture import Architecture
from stae_cli.training import evaluation, run
from stae_cli.training.loop import DivergedError, Loop
from stae_cli.training.photos import Crops
from stae_cli.training.workspace import Workspace
from tests.launcher import wait_for
from tests.pictures import noise, write_photos
from tests.seeded import TINY, seeded_tensors

ROOT = Path(__file__).parents[2]
STEPS = 40


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    for number in range(6):
        Image.fromarray(noise(50 + number, 70 - number, seed=number)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "made" / "new.safetensors"


def arguments(photos, out, tiny, *more, steps=STEPS):
    """A short run of a tiny network that saves its state whenever it can."""
    common = ("--from", tiny, "--steps", steps, "--batch", 4, "--crop", 32, "--save-every", 0)
    return ["train", photos, "--out", out, *common, "--device", "cpu", *more]


def log_of(out):
    text = (out.parent / f"{out.stem}.training" / "log.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def curve_of(out):
    return {line["step"]: line["loss"] for line in log_of(out) if "loss" in line}


def wait_for_steps(out, steps, ended):
    state = out.parent / f"{out.stem}.training" / "state.pt"
    wait_for(lambda: state.exists() and max([0, *curve_of(out)]) >= steps, ended=ended)


@pytest.fixture(scope="module")
def unbroken(photos, tiny, launcher, tmp_path_factory):
    """A run to the end without any interruption."""
    out = tmp_path_factory.mktemp("unbroken") / "new.safetensors"
    command = arguments(photos, out, tiny, "--validate", photos, "--json")
    with launcher.running(*command, log=out.with_name("log")) as process:
        assert process.wait() == 0, process.err
    return out, json.loads(process.out), process.err


def test_a_checkpoint_with_its_history(unbroken, tiny):
    out, summary, errors = unbroken
    made = read_checkpoint(out, name="new")
    assert made.architecture == TINY
    assert made.fingerprint != read_checkpoint(tiny, name="tiny").fingerprint
    recipe, data = (json.loads(made.metadata[key]) for key in ("recipe", "data"))
    assert (recipe["steps"], recipe["crop"], recipe["optimizer"]) == (STEPS, 32, "adamw")
    assert recipe["start"].startswith("tiny.safetensors ")
    assert data == {"sources": ["photos"], "photos": [6], "megapixels": 0.0}
    assert json.loads(made.metadata["training"])["steps"] == STEPS
    validation = json.loads(made.metadata["validation"])
    assert validation == {
        "folder": "photos",
        "photos": 6,
        "psnr": round(summary["psnr"], 3),
        "also_trained_on": 6,
    }
    assert summary["photos"] == 6
    assert "6 photos" in errors
    folder = out.parent / "new.training"
    assert sorted(path.name for path in folder.iterdir()) == [
        "curve.png",
        "log.jsonl",
        "samples.png",
    ]
    for name in ("curve.png", "samples.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 100


def test_training_helps(unbroken):
    out, summary, _ = unbroken
    curve = curve_of(out)
    assert list(curve) == list(range(10, STEPS + 1, 10))
    assert curve[STEPS] < 0.8 * curve[10]
    measured = [line["psnr"] for line in log_of(out) if "psnr" in line]
    assert measured[-1] == summary["psnr"] > measured[0] + 1


def test_latent_statistics_are_those_of_the_encoder(unbroken, photos):
    made = read_checkpoint(unbroken[0], name="new")
    figures = json.loads(made.metadata["latents"])
    model = made.model()
    with torch.no_grad():
        pictures = [Image.open(path).convert("RGB") for path in sorted(photos.iterdir())]
        tensors = [
            torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).view(p.height, p.width, 3)
            for p in pictures
        ]
        latents = torch.cat(
            [
                model.encode(t[:32, :32].permute(2, 0, 1)[None].float() / 127.5 - 1).flatten(2)
                for t in tensors
            ],
            dim=2,
        )[0]
    assert len(figures["mean"]) == len(figures["std"]) == 16
    assert torch.tensor(figures["mean"]).allclose(latents.mean(1), atol=0.3)
    assert figures["scale"] == pytest.approx(1 / float(latents.std()), rel=0.3)
    assert float(latents.abs().max()) * 0.5 < figures["largest"] < 1000
    assert figures["images"] == 6


def test_codec_scales_latents_with_the_recorded_figures(unbroken, tiny):
    from stae_cli import Codec, StupidAE
    from stae_cli.errors import CheckpointError

    codec = Codec(StupidAE.from_checkpoint(str(unbroken[0])), device="cpu")
    figures = json.loads(read_checkpoint(unbroken[0], name="new").metadata["latents"])
    latents = codec.encode(torch.rand(1, 3, 32, 32) * 2 - 1)
    scaled = codec.normalize(latents)
    assert scaled.allclose((latents - figures["shift"]) * figures["scale"])
    assert codec.denormalize(scaled).allclose(latents, atol=1e-5)
    with pytest.raises(CheckpointError, match="without the statistics"):
        Codec(StupidAE.from_checkpoint(str(tiny)), device="cpu").normalize(latents)


def test_weights_show_tells_the_history_in_words(unbroken, stae):
    ran = stae("weights", "show", unbroken[0])
    assert ran.code == 0
    told = dict(line.split(": ", 1) for line in ran.out.splitlines())
    assert list(told)[:3] == ["name", "fingerprint", "architecture"]
    assert list(told)[5:10] == ["recipe", "data", "training", "validation", "latents"]
    assert f"steps {STEPS}" in told["recipe"]
    assert "snoo no" in told["recipe"]
    assert told["data"].startswith("sources photos, photos 6, ")
    assert told["validation"].startswith("folder photos, photos 6, psnr ")
    figures = stae("weights", "show", unbroken[0], "--json").json["metadata"]["latents"]
    assert len(figures["mean"]) == 16
    for name in ("shift", "scale", "largest"):
        assert f"{name} {figures[name]}" in told["latents"]


def test_weights_show_takes_metadata_as_it_comes(stae, tmp_path):
    odd = {"recipe": "by hand", "latents": '{"mean": NaN}', "data": "[" * 5000, "note": '"x"'}
    path = tmp_path / "odd.safetensors"
    write_checkpoint(path, seeded_tensors(TINY, 1), TINY, odd)
    shown = stae("weights", "show", path, "--json").json["metadata"]
    assert odd.items() <= shown.items()
    ran = stae("weights", "show", path)
    assert ran.code == 0
    assert "recipe: by hand" in ran.out


def test_two_processes_follow_the_curve_of_one(
    photos, tiny, out, tmp_path, unbroken, launcher, free_port
):
    command = arguments(photos, out, tiny, "--json")
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port}
    shared["TORCHELASTIC_RUN_ID"] = "none"  # so torchrun says that it started them
    ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    with (
        launcher.running(*command, log=tmp_path / "first", environment=ranks[0]) as first,
        launcher.running(*command, log=tmp_path / "second", environment=ranks[1]) as second,
    ):
        assert first.wait() == 0, first.err
        assert second.wait() == 0, second.err
    assert json.loads(first.out)["steps"] == STEPS
    assert second.out == ""
    assert_same_curve(out, unbroken[0], rel=1e-4)


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def assert_same_curve(one, other, *, rel):
    curve, expected = curve_of(one), curve_of(other)
    assert list(curve) == list(expected)
    assert list(curve.values()) == pytest.approx(list(expected.values()), rel=rel)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_processes_that_torchrun_starts_anew_go_on(photos, tiny, out):
    """Also those that replace a checkpoint: it is the same command."""
    out.parent.mkdir()
    shutil.copy(tiny, out)
    command = arguments(photos, out, tiny, "--overwrite", "--json", steps=200)
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--max-restarts", 2)
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, (*torchrun, "-m", "stae_cli", *command))],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for rank, steps in ((0, 50), (1, 100)):
        wait_for_steps(out, steps, process.poll)
        os.kill(workers_of(process)[rank], signal.SIGKILL)
        wait_for(lambda: len(workers_of(process)) != 2, ended=process.poll)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert json.loads(output)["resumed_at"] >= 90
    assert list(curve_of(out)) == list(range(10, 201, 10))
    assert errors.count("continuing after step") == 2


def workers_of(process):
    """The numbers of the processes that a launcher has started and not yet buried."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [pid for pid in map(int, children) if b"stae_cli" in commandline(pid)]


def commandline(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_killed_and_resumed_is_the_same_curve(
    stae, photos, tiny, out, tmp_path, unbroken, launcher
):
    command = arguments(photos, out, tiny, "--validate", photos)
    with launcher.running(*command, log=tmp_path / "log") as process:
        wait_for_steps(out, 20, process.has_ended)
        process.end_by(signal.SIGKILL)
    assert not out.exists()
    with launcher.running(*command, "--json", log=tmp_path / "log") as process:
        assert process.wait() == 0, process.err
    assert json.loads(process.out)["resumed_at"] >= 10
    assert "continuing after step" in process.err
    assert_same_curve(out, unbroken[0], rel=1e-5)
    for name, tensor in read_checkpoint(unbroken[0], name="a").tensors.items():
        assert torch.allclose(tensor, read_checkpoint(out, name="b").tensors[name], atol=1e-5)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_saves_and_goes_on(
    stae, photos, tiny, out, tmp_path, launcher, number, code
):
    command = arguments(photos, out, tiny, "--save-every", 60, steps=4000)
    log = out.parent / "new.training" / "log.jsonl"
    with launcher.running(*command, log=tmp_path / "log") as process:
        wait_for(lambda: log.exists() and log.read_text().count("\n") > 2, ended=process.has_ended)
        assert process.end_by(number) == code, process.err
    assert "Traceback" not in process.err
    state = torch.load(out.parent / "new.training" / "state.pt", weights_only=True)
    assert state["loop"]["step"] >= max(curve_of(out))
    other = stae(*arguments(photos, out, tiny, "--lr", 1e-3, steps=4000))
    other.assert_fails(1, "other settings", "learning rate was 0.0005, now 0.001")


@pytest.fixture
def interrupted(monkeypatch):
    """Has the next runs of this process interrupted after a step; None: not any more."""
    advance = Loop.advance

    def after(step):
        def stopped(loop):
            if loop.step == step:
                raise KeyboardInterrupt
            advance(loop)

        monkeypatch.setattr(Loop, "advance", stopped)

    return after


def test_a_run_that_replaces_a_checkpoint_goes_on_after_interruptions(
    stae, photos, tiny, out, interrupted
):
    assert stae(*arguments(photos, out, tiny, steps=1)).code == 0
    before, command = out.read_bytes(), arguments(photos, out, tiny, "--overwrite", "--json")
    for step in (10, 20):
        interrupted(step)
        assert stae(*command).code == 130
        assert out.read_bytes() == before
    interrupted(30)  # what it replaces is known: it need not be told again
    assert stae(*arguments(photos, out, tiny)).code == 130
    interrupted(None)
    assert stae(*command).json["resumed_at"] == 30
    assert list(curve_of(out)) == [10, 20, 30, 40]
    assert out.read_bytes() != before
    assert stae(*command).json["resumed_at"] == 0  # of a finished run nothing is left to go on


def test_where_a_run_goes_on_from_is_logged(stae, photos, tiny, out, interrupted, caplog):
    caplog.set_level("INFO", "stae_cli.training")
    interrupted(10)
    assert stae(*arguments(photos, out, tiny)).code == 130
    assert "state.pt` does not exist" in caplog.text
    assert "process 1 of 1 trains on cpu in float32 after step 0" in caplog.text
    interrupted(None)
    caplog.clear()
    assert stae(*arguments(photos, out, tiny, "--json")).json["resumed_at"] == 10
    assert "going on from `" in caplog.text
    assert "after step 10" in caplog.text


def test_another_checkpoint_than_the_run_began_with_is_not_replaced(
    stae, photos, tiny, out, interrupted
):
    interrupted(10)
    assert stae(*arguments(photos, out, tiny)).code == 130
    interrupted(None)
    shutil.copy(tiny, out)
    stae(*arguments(photos, out, tiny)).assert_fails(2, "exists")
    assert out.read_bytes() == tiny.read_bytes()
    assert stae(*arguments(photos, out, tiny, "--overwrite", "--json")).json["resumed_at"] == 10


def test_overwrite_drops_an_unfinished_run_with_other_settings(
    stae, photos, tiny, out, interrupted
):
    interrupted(10)
    assert stae(*arguments(photos, out, tiny)).code == 130
    interrupted(None)
    ran = stae(*arguments(photos, out, tiny, "--overwrite", "--json", steps=20))
    assert ran.json["resumed_at"] == 0
    assert list(curve_of(out)) == [10, 20]


def test_a_run_that_is_refused_changes_nothing(stae, photos, tiny, out, interrupted):
    refused = (["--validate", "absent"], ["--crop", 512], ["--memory", 0.000001])
    for more in refused:
        assert stae(*arguments(photos, out, tiny, *more)).code in (1, 2)
        assert not out.parent.exists()
    interrupted(10)
    assert stae(*arguments(photos, out, tiny)).code == 130
    folder = out.parent / "new.training"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {"state.pt", "last.safetensors", "log.jsonl"} <= set(before)
    for more in refused:
        assert stae(*arguments(photos, out, tiny, "--overwrite", *more)).code in (1, 2)
    assert stae(*arguments(photos / "absent", out, tiny, "--overwrite")).code == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_place_that_cannot_be_written_to_is_told_at_once(stae, photos, tiny, out):
    out.parent.write_bytes(b"no folder")
    stae(*arguments(photos, out, tiny)).assert_fails(1, "cannot write to", "new.training")


def test_two_runs_do_not_write_to_one_checkpoint(stae, photos, tiny, out, tmp_path, launcher):
    command = arguments(photos, out, tiny, steps=4000)
    with launcher.running(*command, log=tmp_path / "log") as process:
        wait_for_steps(out, 10, process.has_ended)
        for more in ((), ("--overwrite",)):
            ran = stae(*arguments(photos, out, tiny, *more))
            ran.assert_fails(1, "another run is at work", "new.training")
        assert not process.has_ended()
        process.end_by(signal.SIGKILL)  # nothing but the system lets go of the lock then
    assert stae(*arguments(photos, out, tiny, "--overwrite", steps=1)).code == 0
    assert not (out.parent / "new.training" / ".lock").exists()


def test_the_pictures_of_runs_are_no_photos(stae, photos, tiny, tmp_path, interrupted):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    command = arguments(folder, folder / "mine.safetensors", tiny, "--validate", folder, steps=20)
    assert stae(*command).code == 0
    interrupted(10)
    assert stae(*command, "--overwrite").code == 130
    assert (folder / "mine.training" / "samples.png").exists()
    interrupted(None)
    ran = stae(*command, "--overwrite", "--json")
    assert (ran.json["photos"], ran.json["resumed_at"]) == (6, 10)
    made = read_checkpoint(folder / "mine.safetensors", name="mine")
    assert json.loads(made.metadata["validation"])["photos"] == 6
    ran = stae(*arguments(folder / "mine.training", tmp_path / "b.safetensors", tiny))
    ran.assert_fails(1, "no inputs found", "pictures of training runs")


def test_pictures_that_are_reproduced_exactly(stae, photos, tiny, out, monkeypatch):
    monkeypatch.setattr(evaluation, "reconstructions", lambda _model, pictures, _device: pictures)
    ran = stae(*arguments(photos, out, tiny, "--validate", photos, "--json", steps=10))
    assert ran.code == 0, ran.err
    assert ran.json["psnr"] is None
    assert "validation PSNR inf dB" in ran.err
    assert [line["psnr"] for line in log_of(out) if "psnr" in line][-1] is None
    made = read_checkpoint(out, name="new").metadata["validation"]
    assert json.loads(made)["psnr"] is None
    assert "Infinity" not in made + ran.out + (out.parent / "new.training/log.jsonl").read_text()


def test_a_checkpoint_appears_when_all_else_is_there(stae, photos, tiny, out, monkeypatch):
    def full(*_arguments, **_named):
        raise StaeError("disk full", "free some disk space")

    with monkeypatch.context() as patch:
        patch.setattr(run, "draw_samples", full)
        stae(*arguments(photos, out, tiny, steps=10)).assert_fails(1, "disk full")
    assert not out.exists()
    assert stae(*arguments(photos, out, tiny, "--json", steps=10)).json["resumed_at"] == 10
    assert (out.parent / "new.training" / "samples.png").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda loop: loop.pop("optimizer"),
        lambda loop: loop["model"].pop("decoder.0.positions"),
        lambda loop: loop.update(step="x"),
        lambda loop: loop.update(losses=3),
        lambda loop: loop["average"].update({"decoder.0.positions": torch.zeros(2)}),
    ],
)
def test_a_state_that_lacks_something_is_told(stae, photos, tiny, out, interrupted, change):
    interrupted(10)
    assert stae(*arguments(photos, out, tiny)).code == 130
    interrupted(None)
    path = out.parent / "new.training" / "state.pt"
    state = torch.load(path, weights_only=True)
    change(state["loop"])
    torch.save(state, path)
    stae(*arguments(photos, out, tiny)).assert_fails(1, "state.pt` is damaged", "remove it")


def test_a_damaged_log_does_not_keep_a_run_from_going_on(stae, photos, tiny, out, interrupted):
    command = arguments(photos, out, tiny, "--json", steps=20)
    interrupted(10)
    assert stae(*command).code == 130
    interrupted(None)
    (out.parent / "new.training" / "log.jsonl").write_bytes(b"\xff\xfe\n3\n{}\n")
    assert stae(*command).json["resumed_at"] == 10
    assert list(curve_of(out)) == [20]


def test_a_rerun_finishes_what_was_left_after_the_checkpoint_was_written(
    stae, photos, tiny, out, monkeypatch
):
    def killed(_workspace):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "finish", killed)
        assert stae(*arguments(photos, out, tiny, steps=10)).code == 130
    assert out.exists()
    ran = stae(*arguments(photos, out, tiny, "--json", steps=10))
    assert ran.json["resumed_at"] == 10
    assert not (out.parent / "new.training" / "state.pt").exists()


@pytest.mark.parametrize("rate", [1e9, 3e4, 1e3])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(
    stae, photos, tiny, out, rate
):
    """Float32 overflows at such rates: at once, or after some states were saved."""
    ran = stae(*arguments(photos, out, tiny, "--lr", rate, steps=1000))
    ran.assert_fails(1, "no longer finite", "--lr")
    assert not out.exists()
    last = out.parent / "new.training" / "last.safetensors"
    assert ("the last good weights" in ran.err) == last.exists()
    if last.exists():
        with torch.no_grad():
            images = torch.rand(2, 3, 32, 32) * 2 - 1
            assert read_checkpoint(last, name="last").model()(images).isfinite().all()


@pytest.mark.parametrize("what", ["loss", "weights", "average"])
def test_what_is_broken_is_never_saved(stae, photos, tiny, out, monkeypatch, what):
    """Seen at a step that is logged, or in weights that no loss has been taken of."""
    advance = Loop.advance

    def breaking(loop):
        advance(loop)
        if loop.step == 20 and what == "loss":
            loop._unread = torch.tensor([math.nan, 1.0])
        elif loop.step == 20:
            model = loop.model if what == "weights" else loop.average.model
            with torch.no_grad():
                model.decoder[0].positions[0, 3, 1] = math.inf

    monkeypatch.setattr(Loop, "advance", breaking)
    ran = stae(*arguments(photos, out, tiny, steps=20))
    last = out.parent / "new.training" / "last.safetensors"
    ran.assert_fails(1, "no longer finite after 20 steps", f"--from {last}` and another `--out`")
    assert not out.exists()
    state = torch.load(out.parent / "new.training" / "state.pt", weights_only=True)
    assert state["loop"]["step"] == 19
    made = read_checkpoint(last, name="last").fingerprint
    assert made == fingerprint(state["loop"]["average"])


def test_a_network_that_breaks_on_pictures_tells_of_the_last_good_weights(
    stae, photos, tiny, out, monkeypatch
):
    def broken(*_arguments, **_named):
        raise DivergedError("the network gives NaN or infinity")

    monkeypatch.setattr(run, "draw_samples", broken)
    ran = stae(*arguments(photos, out, tiny, steps=10))
    ran.assert_fails(1, "gives NaN or infinity", "last.safetensors")


def test_new_checkpoints_start_as_the_linear_autoencoder(stae, photos, out):
    command = ["train", photos, "--out", out, "--batch", 2, "--crop", 32, "--device", "cpu"]
    assert stae(*command, "--steps", 1, "--validate", photos / "0.png").code == 0
    assert log_of(out)[0]["psnr"] > 20
    assert json.loads(read_checkpoint(out, name="new").metadata["recipe"])["start"] == "pca"


def test_small_and_damaged_photos_are_reported(stae, photos, tiny, out, tmp_path):
    mixed = write_photos(tmp_path / "mixed", 4)
    Image.fromarray(noise(64, 64)).save(mixed / "large.png")
    (mixed / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    ran = stae(*arguments(mixed, out, tiny, steps=1))
    assert ran.code == 3
    assert "broken.png" in ran.err
    assert "4 smaller than the crop were skipped" in ran.err
    assert out.exists()


def test_bfloat16_keeps_float32_weights(stae, photos, tiny, out):
    ran = stae(*arguments(photos, out, tiny, "--dtype", "bfloat16", "--json", steps=2))
    assert ran.code == 0, ran.err
    assert math.isfinite(ran.json["loss"])
    assert read_checkpoint(out, name="new").dtype == torch.float32


def test_a_run_by_the_clock_ends(stae, photos, tiny, out):
    command = ["train", photos, "--out", out, "--from", tiny, "--minutes", 0.02, "--crop", 32]
    ran = stae(*command, "--batch", 4, "--device", "cpu", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["seconds"] >= 1.2
    assert log_of(out)[-1]["step"] == ran.json["steps"] > 0


def test_a_finished_checkpoint_is_not_trained_over(stae, photos, tiny, out):
    assert stae(*arguments(photos, out, tiny, steps=1)).code == 0
    before = out.read_bytes()
    stae(*arguments(photos, out, tiny, steps=1)).assert_fails(2, "exists")
    assert out.read_bytes() == before
    assert stae(*arguments(photos, out, tiny, "--overwrite", steps=2)).code == 0


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--init", "pca"], 2, "contradict"),
        (["--crop", "60"], 2, "not a multiple"),
        (["--crop", "512"], 1, "smaller than the crop of 512"),
        (["--minutes", "1"], 2, "how long"),
        (["--validate", "absent"], 2, "no such file"),
        (["--memory", "0.000001"], 1, "beyond the memory"),
        (["--out", "new.pt"], 2, ".safetensors"),
        (["--lr", "0"], 2, "above 0"),
        (["--lr", "inf"], 2, "numbers above 0"),
        (["--memory", "nan"], 2, "--memory"),
        (["--seed", str(1 << 64)], 2, "--seed"),
        (["--batch", str(1 << 60)], 2, "--batch"),
        (["--from", "absent.safetensors"], 1, "no checkpoint file"),
    ],
)
def test_what_makes_no_sense_is_refused(stae, photos, tiny, out, more, code, words):
    stae(*arguments(photos, out, tiny, *more)).assert_fails(code, words)


def test_the_last_good_weights_are_no_start_of_their_own_run(stae, photos, tiny, out, interrupted):
    """They would be replaced: the same command would then mean another start."""
    interrupted(10)
    assert stae(*arguments(photos, out, tiny)).code == 130
    interrupted(None)
    last = out.parent / "new.training" / "last.safetensors"
    stae(*arguments(photos, out, last, "--overwrite")).assert_fails(2, "the run itself writes")
    assert last.exists()
    assert stae(*arguments(photos, out.parent / "b.safetensors", last, steps=1)).code == 0


def test_the_largest_seed_and_memory_without_end(stae, photos, tiny, out):
    largest = ("--seed", (1 << 64) - 1, "--memory", "inf", "--architecture", "f8c16-shuffle")
    command = ["train", photos, "--out", out, "--steps", 1, "--batch", 2, "--crop", 32]
    ran = stae(*command, *largest, "--init", "random", "--device", "cpu")
    assert ran.code == 0, ran.err


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
        ),
        MemoryError("Unable to allocate 1.00 PiB for an array"),
    ],
)
def test_too_little_memory_is_told(stae, photos, tiny, out, monkeypatch, error):
    def short(*_arguments, **_named):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Crops, "batch", short)
        ran = stae(*arguments(photos, out, tiny))
        ran.assert_fails(1, "out of memory", "lower `--batch` or `--crop`")
    monkeypatch.setattr(run, "load_photos", short)
    stae(*arguments(photos, out, tiny)).assert_fails(1, "out of memory")


def test_no_photos_is_an_error(stae, tiny, out, tmp_path):
    stae(*arguments(tmp_path, out, tiny)).assert_fails(1, "no inputs found")


def test_fine_tuning_keeps_the_architecture(stae, photos, out, tmp_path, tiny):
    broken = seeded_tensors(TINY, 1)
    broken.pop("decoder.0.positions")
    write_checkpoint(tmp_path / "odd.safetensors", broken, TINY, {})
    ran = stae(*arguments(photos, out, tiny, "--from", tmp_path / "odd.safetensors"))
    ran.assert_fails(1, "missing decoder.0.positions")


def test_a_checkpoint_with_nan_is_not_fine_tuned(stae, photos, out, tmp_path, tiny):
    broken = seeded_tensors(TINY, 1)
    broken["decoder.0.positions"][0, 3, 1] = math.nan
    write_checkpoint(tmp_path / "broken.safetensors", broken, TINY, {})
    ran = stae(*arguments(photos, out, tiny, "--from", tmp_path / "broken.safetensors"))
    ran.assert_fails(1, "broken.safetensors", "NaN", "decoder.0.positions")


def test_a_run_does_not_go_on_with_other_photos(stae, photos, tiny, out, tmp_path, interrupted):
    """Other names, or the same ones with other pixels."""
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    interrupted(10)
    assert stae(*arguments(folder, out, tiny)).code == 130
    interrupted(None)
    (tmp_path / "more").mkdir()
    Image.fromarray(noise(64, 64)).save(tmp_path / "more" / "new.png")
    ran = stae("train", tmp_path / "more", *arguments(folder, out, tiny)[1:])
    ran.assert_fails(1, "the photos are not the same", "--overwrite")
    Image.fromarray(noise(50, 70, seed=9)).save(folder / "0.png")
    stae(*arguments(folder, out, tiny)).assert_fails(1, "the photos are not the same")
    shutil.copy(photos / "0.png", folder / "0.png")
    assert stae(*arguments(folder, out, tiny, "--json")).json["resumed_at"] == 10


def test_a_damaged_validation_photo_is_named(stae, photos, tiny, out, tmp_path):
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    ran = stae(*arguments(photos, out, tiny, "--validate", tmp_path / "held"))
    ran.assert_fails(1, "broken.png")


def shallow_checkpoint(path):
    """As little as possible to compile."""
    sizes = Architecture("shallow", width=32, head_width=8, encoder_blocks=1, decoder_pairs=1)
    write_checkpoint(path, seeded_tensors(sizes), sizes, {})
    return path


@pytest.mark.filterwarnings("default")  # torch's compiler warns about itself
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles by g++")
def test_a_compiled_network_learns_the_same(stae, photos, out, tmp_path):
    torch.compiler.reset()
    small = shallow_checkpoint(tmp_path / "shallow.safetensors")
    assert stae(*arguments(photos, out, small, "--seed", 3, steps=10)).code == 0
    plain = curve_of(out)
    ran = stae(*arguments(photos, out, small, "--seed", 3, "--compile", "--overwrite", steps=10))
    assert ran.code == 0, ran.err
    assert curve_of(out)[10] == pytest.approx(plain[10], rel=1e-3)


def no_compiler(_graph, _inputs):
    """What inductor does where it finds none."""
    from torch._inductor.exc import InductorError, InvalidCxxCompiler

    raise InductorError(InvalidCxxCompiler(), None)


def broken_backend(_graph, _inputs):
    raise ValueError("no such backend")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("backend", [no_compiler, broken_backend])
def test_without_a_compiler_that_is_said(stae, photos, out, tmp_path, monkeypatch, backend):
    torch.compiler.reset()
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend=backend))
    small = shallow_checkpoint(tmp_path / "shallow.safetensors")
    ran = stae(*arguments(photos, out, small, "--compile", steps=1))
    ran.assert_fails(1, "torch cannot compile the network", "omit `--compile`")
    assert not out.exists()


def test_too_little_memory_for_a_step_is_told(stae, photos, tiny, out, monkeypatch):
    def fail(_loop, _network, _batch):
        raise torch.OutOfMemoryError("simulated: only a device has its own memory")

    monkeypatch.setattr("stae_cli.training.loop.Loop._loss", fail)
    ran = stae(*arguments(photos, out, tiny, steps=1))
    ran.assert_fails(1, "out of memory", "lower `--batch`")


def test_validating_on_what_is_trained_on_is_told(stae, photos, tiny, out, tmp_path):
    """By its pixels: neither another name nor another format hides a copy."""
    held = tmp_path / "held"
    held.mkdir()
    Image.fromarray(noise(64, 64, seed=99)).save(held / "new.png")
    honest = stae(*arguments(photos, out, tiny, "--validate", held, steps=1))
    assert honest.code == 0, honest.err
    assert "warning" not in honest.err
    Image.open(photos / "3.png").save(held / "copy.bmp")
    ran = stae(*arguments(photos, out, tiny, "--validate", held, "--overwrite", steps=1))
    assert ran.code == 0, ran.err
    assert "warning: --validate holds photos that are trained on too" in ran.err
    assert "copy.bmp" in ran.err


def test_a_folder_in_the_checkpoints_place_is_refused(stae, photos, tiny, out):
    out.mkdir(parents=True)
    stae(*arguments(photos, out, tiny, "--overwrite")).assert_fails(2, "is a folder")


def test_an_empty_validation_folder_is_an_error(stae, photos, tiny, out, tmp_path):
    (tmp_path / "held").mkdir()
    ran = stae(*arguments(photos, out, tiny, "--validate", tmp_path / "held"))
    ran.assert_fails(1, "no inputs found")


def test_the_published_recipe_is_a_preset_that_options_override(stae, photos, tiny, out):
    pytest.importorskip("pytorch_optimizer")
    small = ("--batch", 2, "--crop", 32, "--steps", 21, "--from", tiny, "--device", "cpu")
    ran = stae("train", photos, "--out", out, "--recipe", "published", *small)
    assert ran.code == 0, ran.err
    recipe = json.loads(read_checkpoint(out, name="new").metadata["recipe"])
    assert (recipe["optimizer"], recipe["snoo"], recipe["learning_rate"]) == ("muon", True, 1e-3)
    assert (recipe["batch"], recipe["crop"], recipe["steps"]) == (2, 32, 21)

"""`stae push` as users run it: a real client in a process of its own, and a local hub."""

import json
import os
import shutil
import signal

import pytest

from stae_cli.latents.listing import list_latents
from tests.conftest import Ran
from tests.data_hub import TOKEN, DataHub
from tests.launcher import launcher_without_settings
from tests.pictures import write_photos


@pytest.fixture
def hub():
    with DataHub() as server:
        yield server


@pytest.fixture(scope="module")
def launcher():
    with launcher_without_settings() as launcher:
        yield launcher


@pytest.fixture
def start(launcher, hub, tmp_path):
    """Starts a push in a process of its own, since the hub client reads its environment once."""

    def start(*arguments, **environment):
        variables = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN,
                     "HF_HUB_DISABLE_XET": "1", **environment}  # fmt: skip
        return launcher.start("push", *arguments, log=tmp_path / "log", environment=variables)

    return start


@pytest.fixture
def push(start, launcher, tmp_path):
    def run(*arguments, **environment):
        code = launcher.wait(start(*arguments, **environment))
        ran = Ran(code, (tmp_path / "log.out").read_text(), (tmp_path / "log").read_text())
        assert "Traceback" not in ran.err
        return ran

    return run


@pytest.fixture
def latents(stae, tiny, tmp_path):
    """Nine latents in five shards."""
    photos = write_photos(tmp_path / "photos")
    (photos / "p0.txt").write_text("a caption")
    folder = tmp_path / "latents"
    assert stae("encode", photos, folder, "--weights", tiny, "--shard-size", 2).code == 0
    return folder


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}  # fmt: skip


def download(hub, name, folder):
    for file, data in hub.files(name).items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)
    return folder


def test_what_was_pushed_can_be_used(push, stae, hub, latents, tiny, tmp_path):
    ran = push(latents, "hf://me/photos", "--json")
    assert ran.code == 0, ran.err
    assert ran.json | {"bytes": 0} == {
        "repository": "me/photos", "url": f"{hub.url}/datasets/me/photos", "private": True,
        "latents": 9, "files": 7, "bytes": 0, "new_card": True, "left_out": [],
        "failed_inputs": 0,
    }  # fmt: skip
    assert hub.private["me/photos"]
    found = hub.files("photos")
    card = found.pop("README.md").decode()
    assert found == files_of(latents)
    assert card.startswith("---\ntags:\n- stae\n")
    assert "9 latents of images" in card
    assert json.loads(found["stae.json"])["weights_sha256"] in card
    assert "| captions | 1 |" in card
    copy = download(hub, "photos", tmp_path / "copy")
    assert stae("verify", copy, "--against", tmp_path / "photos").code == 0
    assert stae("decode", copy, tmp_path / "pictures", "--weights", tiny).code == 0
    assert len(list((tmp_path / "pictures").rglob("*.png"))) == 9
    assert len(list_latents([copy]).latents) == 9


def test_a_second_push_sends_only_what_is_new(push, stae, hub, latents, tiny, tmp_path):
    assert push(latents, "hf://datasets/me/photos").code == 0
    hub.files("photos")["README.md"] = b"my card"
    sent, commits = len(hub.uploads), len(hub.commits)
    assert push(latents, "hf://datasets/me/photos").code == 0
    assert (len(hub.uploads), len(hub.commits)) == (sent, commits)
    shutil.copy(tmp_path / "photos/p1.png", tmp_path / "photos/z.png")
    command = ("encode", tmp_path / "photos", latents, "--weights", tiny, "--shard-size", 2)
    assert stae(*command).code == 0
    assert push(latents, "hf://me/photos").code == 0
    assert hub.files("photos") == files_of(latents) | {"README.md": b"my card"}
    assert len(hub.uploads) <= sent + 2


def test_a_killed_push_continues(start, push, launcher, hub, latents):
    hub.stop_after = 3
    process = start(latents, "hf://me/photos")
    assert hub.waiting.wait(60)
    os.kill(process, signal.SIGKILL)
    launcher.wait(process)
    assert "stae.json" not in hub.files("photos")
    sent = list(hub.uploads)
    assert len(sent) == 3
    hub.stop_after = None
    assert push(latents, "hf://me/photos").code == 0
    assert len(set(hub.uploads)) == len(hub.uploads)  # nothing was sent twice
    assert files_of(latents).items() <= hub.files("photos").items()


def test_an_interrupted_push_says_how_to_continue(start, push, launcher, hub, latents, tmp_path):
    hub.stop_after = 3
    process = start(latents, "hf://me/photos")
    assert hub.waiting.wait(60)
    os.kill(process, signal.SIGINT)
    hub.stop_after = None
    hub.stopped.set()  # what is in flight ends
    assert launcher.wait(process) == 130
    assert "continue where it stopped" in (tmp_path / "log").read_text()
    assert "stae.json" not in hub.files("photos")
    assert push(latents, "hf://me/photos").code == 0
    assert files_of(latents).items() <= hub.files("photos").items()


def test_visibility(push, hub, latents):
    assert push(latents, "hf://me/open", "--public", "--json").json["private"] is False
    assert push(latents, "hf://me/open", "--json").json["private"] is False
    ran = push(latents, "hf://me/open", "--private")
    ran.assert_fails(1, "`me/open` is public")


def test_other_files_are_left_out_and_named(push, hub, latents):
    (latents / "notes.txt").write_text("mine")
    (latents / ".env").write_text("SECRET=1")
    (latents / "other.safetensors").write_bytes((8).to_bytes(8, "little") + b'{"a":{}}')
    ran = push(latents, "hf://me/photos")
    assert ran.code == 0, ran.err
    assert "not uploaded, as they are not of the run: .env, notes.txt" in ran.err
    assert not {"notes.txt", ".env", "other.safetensors"} & hub.files("photos").keys()


def test_failed_inputs_are_a_warning(push, stae, hub, tiny, latents, tmp_path):
    (tmp_path / "photos/broken.png").write_bytes(b"x")
    command = ("encode", tmp_path / "photos", latents, "--weights", tiny, "--shard-size", 2)
    assert stae(*command).code == 3
    ran = push(latents, "hf://me/photos", "--json")
    assert (ran.code, ran.json["failed_inputs"]) == (0, 1)
    assert "1 inputs of the run failed" in ran.err


def test_incomplete_runs_are_refused(push, stae, hub, tiny, latents, tmp_path):
    (latents / "manifest.jsonl").unlink()
    push(latents, "hf://me/photos").assert_fails(1, "is not complete")
    share = ("--unit-rank", 0, "--unit-count", 2)
    half = tmp_path / "half"
    command = ("encode", tmp_path / "photos", half, "--weights", tiny, "--shard-size", 2, *share)
    assert stae(*command).code == 0
    push(half, "hf://me/photos").assert_fails(1, "part 1 of 2 has not finished")
    assert hub.revisions == {}


def test_damaged_and_foreign_folders_are_refused(push, hub, latents, tmp_path):
    shard = latents / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-7])
    push(latents, "hf://me/photos").assert_fails(1, "1 file", "shard-00001.safetensors")
    push(tmp_path / "photos", "hf://me/photos").assert_fails(2, "holds no latents of a run")
    push(tmp_path / "none", "hf://me/photos").assert_fails(2, "is not there")
    push(latents, "hf://models/me/photos").assert_fails(2, "is not a dataset on the hub")
    push(latents, "me/photos").assert_fails(2, "is not a dataset on the hub")
    assert hub.requests == []


def test_latents_that_are_there_already_are_not_mixed(push, hub, latents):
    assert push(latents, "hf://me/photos").code == 0
    hub.files("photos")["shard-00077.safetensors"] = b"x" * 2000
    push(latents, "hf://me/photos").assert_fails(1, "shard-00077.safetensors")


def test_what_the_hub_refuses(push, hub, latents):
    push(latents, "hf://me/photos", HF_TOKEN="").assert_fails(1, "needs a token")
    push(latents, "hf://me/photos", HF_TOKEN="hf_wrong").assert_fails(1, "refuses the token")
    push(latents, "hf://you/photos").assert_fails(1, "may not write to `you/photos`")
    ran = push(latents, "hf://me/photos", HF_ENDPOINT="http://127.0.0.1:9")
    ran.assert_fails(1, "cannot upload to `me/photos`")
    assert hub.revisions == {}

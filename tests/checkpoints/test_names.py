"""Checkpoint names: the built-in ones, files, and the hub (a real client, a local server)."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stae_cli.checkpoints.names import HubFile, locate, locate_recorded, parse_hub_file
from stae_cli.errors import CheckpointError, UsageError
from tests.hub import COMMIT, Hub

REPOSITORY = "Muinez/StupidAE"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A pickle of the real size, as published, with the seeded weights."""
    import torch

    from tests.seeded import seeded_tensors

    path = tmp_path_factory.mktemp("published") / "smol_f8c16.pt"
    torch.save(seeded_tensors(), path)
    return path.read_bytes()


@pytest.fixture
def hub(published):
    with Hub(REPOSITORY, {"smol_f8c16.pt": published, "notes.pt": b"not a checkpoint"}) as server:
        yield server


@pytest.fixture
def home(tmp_path):
    return tmp_path / "hf"


def stae(*arguments, home, endpoint, **environment):
    """`stae` in a process of its own, since the hub client reads its environment once."""
    variables = {
        **os.environ,
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        **environment,
    }
    for name in ("STAE_WEIGHTS", "HF_TOKEN", "HF_HUB_OFFLINE"):
        if name not in environment:
            variables.pop(name, None)
    return subprocess.run(
        [sys.executable, "-m", "stae_cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=variables,
        timeout=120,
    )


def test_downloads_once_then_needs_no_hub(hub, home):
    first = stae("weights", "show", "stupidae", "--json", home=home, endpoint=hub.url)
    assert first.returncode == 0, first.stderr
    facts = json.loads(first.stdout)
    assert (facts["name"], facts["parameters"]) == ("stupidae", 13_243_539)
    hub.requests.clear()
    second = stae("weights", "show", "stupidae", "--json", home=home, endpoint=hub.url)
    assert json.loads(second.stdout) == facts
    assert hub.requests == []
    offline = stae(
        "weights", "show", "stupidae", "--json", home=home, endpoint=hub.url, HF_HUB_OFFLINE="1"
    )
    assert json.loads(offline.stdout) == facts


def test_offline_with_a_cold_cache_names_the_builtin(hub, home):
    ran = stae("weights", "fetch", "stupidae", home=home, endpoint=hub.url, HF_HUB_OFFLINE="1")
    assert ran.returncode == 1
    assert "not cached" in ran.stderr
    assert "`builtin`" in ran.stderr
    assert "--weights" not in ran.stderr  # which this command does not have
    assert "Traceback" not in ran.stderr
    assert hub.requests == []


def test_an_unreachable_hub_is_one_clear_error(hub, home):
    photos, out = Path(__file__).parents[2] / "examples" / "photos", home / "out"
    ran = stae("encode", photos, out, home=home, endpoint="http://127.0.0.1:9")
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: `hf://Muinez/StupidAE/smol_f8c16.pt` is not cached")
    assert "--weights builtin" in ran.stderr


def test_an_interrupted_download_is_an_error_and_the_next_run_completes_it(hub, home):
    hub.cut_after = 1_000_000
    cut = stae("weights", "fetch", "stupidae", home=home, endpoint=hub.url)
    assert cut.returncode == 1, cut.stderr
    assert "Traceback" not in cut.stderr
    hub.cut_after = None
    whole = stae("weights", "fetch", "stupidae", home=home, endpoint=hub.url)
    assert whole.returncode == 0, whole.stderr
    assert Path(whole.stdout.strip()).read_bytes() == hub.files["smol_f8c16.pt"]


def test_a_file_that_is_no_checkpoint_is_refused(hub, home):
    ran = stae("weights", "show", f"hf://{REPOSITORY}/notes.pt", home=home, endpoint=hub.url)
    assert ran.returncode == 1
    assert "notes.pt" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("name", "word"),
    [
        (f"hf://{REPOSITORY}/absent.pt", "entry"),
        (f"hf://{REPOSITORY}/smol_f8c16.pt@nowhere", "revision"),
        ("hf://nobody/nothing/file.pt", "repository"),
    ],
)
def test_what_the_hub_does_not_have_is_named(hub, home, name, word):
    ran = stae("weights", "show", name, home=home, endpoint=hub.url)
    assert ran.returncode == 1
    assert f"does not have that {word}" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_hub_file_is_recorded_with_its_commit(hub, home):
    name = f"hf://{REPOSITORY}/smol_f8c16.pt"
    ran = stae("weights", "show", name, "--json", home=home, endpoint=hub.url)
    assert json.loads(ran.stdout)["name"] == f"{name}@{COMMIT}"


def test_stae_weights_sets_the_default(hub, home, tmp_path):
    ran = stae("encode", tmp_path, tmp_path / "x", home=home, endpoint=hub.url, STAE_WEIGHTS="no")
    assert ran.returncode != 0
    assert hub.requests == []


def test_builtin_is_the_newest_and_goes_by_its_permanent_name():
    assert locate("builtin") == locate("photo-2")
    assert locate("builtin").name == "photo-2"
    assert locate("builtin").path.is_file()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("http://host/y.pt", "not read from `http://host/y.pt`"),
        ("absent/./y.pt", "no checkpoint file `absent/./y.pt`"),
        ("~nobody-at-all/y.pt", "no checkpoint file `~nobody-at-all/y.pt`"),
        ("y\0.pt", "no checkpoint file"),
        ("", "unknown checkpoint ``"),
        ("photo-99", "unknown checkpoint `photo-99`"),
    ],
)
def test_what_is_no_checkpoint_is_named_as_it_was_typed(name, words):
    with pytest.raises(CheckpointError, match=re.escape(words)):
        locate(name)


def test_hub_names_are_parsed():
    assert parse_hub_file("hf://a/b/c/d.pt@v1") == HubFile("a/b", "c/d.pt", "v1")
    assert parse_hub_file("hf://a/b/c.pt") == HubFile("a/b", "c.pt", None)


@pytest.mark.parametrize("name", ["hf://", "hf://a", "hf://a/b", "hf://a/b/", "hf://a/b/../c.pt"])
def test_malformed_hub_names_are_usage_errors(name):
    with pytest.raises(UsageError, match="malformed"):
        parse_hub_file(name)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "x.pt", "../x.safetensors", "hf://a/b/never-cached.pt", "hf://", ""]
)
def test_what_a_latent_names_is_neither_opened_nor_fetched(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pt").write_bytes(b"")
    monkeypatch.setattr("stae_cli.checkpoints.names.fetch", lambda _: pytest.fail("fetched"))
    assert locate_recorded(name) is None


def test_latents_of_the_cached_published_file_are_known_by_their_fingerprint(
    hub, home, published, tmp_path
):
    (tmp_path / "mine.pt").write_bytes(published)
    photo = Path(__file__).parents[2] / "examples" / "photos" / "kodim23.png"
    at = {"home": home, "endpoint": hub.url}
    made = stae(
        "encode", photo, tmp_path / "out", "--square", 8, "--weights", tmp_path / "mine.pt", **at
    )
    assert made.returncode == 0, made.stderr
    decode = ("decode", tmp_path / "out", tmp_path / "pictures")
    assert "`mine.pt`, which is not available here" in stae(*decode, **at).stderr
    assert hub.requests == []
    assert stae("weights", "fetch", "stupidae", **at).returncode == 0
    ran = stae(*decode, **at)
    assert ran.returncode == 0, ran.stderr

"""Checkpoint names: the built-in ones, files, and the hub (a real client, a local server)."""

import json
import re
from pathlib import Path

import pytest
import torch

from stae_cli.checkpoints.names import HubFile, locate, locate_recorded, parse_hub_file
from stae_cli.errors import CheckpointError, UsageError
from tests.conftest import Ran
from tests.hub import COMMIT, Hub
from tests.launcher import launcher_without_settings
from tests.pictures import EXAMPLES
from tests.seeded import seeded_tensors

REPOSITORY = "Muinez/StupidAE"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A pickle of the real size, as published, with the seeded weights."""
    path = tmp_path_factory.mktemp("published") / "smol_f8c16.pt"
    torch.save(seeded_tensors(), path)
    return path.read_bytes()


@pytest.fixture
def hub(published):
    with Hub(REPOSITORY, {"smol_f8c16.pt": published, "notes.pt": b"not a checkpoint"}) as server:
        yield server


@pytest.fixture(scope="module")
def launcher():
    with launcher_without_settings() as launcher:
        yield launcher


@pytest.fixture
def stae(launcher, hub, tmp_path):
    """Runs `stae` in a process of its own, since the hub client reads its environment once."""
    log = tmp_path / "log"

    def run(*arguments, **environment):
        variables = {
            "HF_HOME": str(tmp_path / "hf"),
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            **environment,
        }
        code = launcher.wait(launcher.start(*arguments, log=log, environment=variables))
        printed = log.read_text() + log.with_name("log.out").read_text()
        assert "Traceback" not in printed
        return Ran(code, printed, printed)

    return run


def facts_of(ran):
    """What `--json` printed, behind what was reported meanwhile."""
    assert ran.code == 0, ran.out
    return json.loads(ran.out[ran.out.index("{") :])


def test_downloads_once_then_needs_no_hub(hub, stae):
    show = ("weights", "show", "stupidae", "--json")
    facts = facts_of(stae(*show))
    assert (facts["name"], facts["parameters"]) == ("stupidae", 13_243_539)
    hub.requests.clear()
    assert facts_of(stae(*show)) == facts
    assert hub.requests == []
    assert facts_of(stae(*show, HF_HUB_OFFLINE="1")) == facts


def test_offline_with_a_cold_cache_names_the_builtin(hub, stae):
    ran = stae("weights", "fetch", "stupidae", HF_HUB_OFFLINE="1")
    ran.assert_fails(1, "not cached", "`builtin`")
    assert "--weights" not in ran.err  # which this command does not have
    assert hub.requests == []


def test_an_unreachable_hub_is_one_clear_error(stae, tmp_path):
    ran = stae("encode", EXAMPLES, tmp_path / "out", HF_ENDPOINT="http://127.0.0.1:9")
    assert ran.code == 1
    assert ran.err.startswith("error: `hf://Muinez/StupidAE/smol_f8c16.pt` is not cached")
    assert "--weights builtin" in ran.err


def test_an_interrupted_download_is_an_error_and_the_next_run_completes_it(hub, stae):
    hub.cut_after = 1_000_000
    cut = stae("weights", "fetch", "stupidae")
    assert cut.code == 1, cut.err
    hub.cut_after = None
    whole = stae("weights", "fetch", "stupidae")
    assert whole.code == 0, whole.err
    assert Path(whole.out.splitlines()[-1]).read_bytes() == hub.files["smol_f8c16.pt"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (f"hf://{REPOSITORY}/notes.pt", "notes.pt"),
        (f"hf://{REPOSITORY}/absent.pt", "does not have that entry"),
        (f"hf://{REPOSITORY}/smol_f8c16.pt@nowhere", "does not have that revision"),
        ("hf://nobody/nothing/file.pt", "does not have that repository"),
    ],
)
def test_what_is_no_checkpoint_or_not_on_the_hub_is_named(stae, name, words):
    stae("weights", "show", name).assert_fails(1, words)


def test_a_hub_file_is_recorded_with_its_commit(stae):
    name = f"hf://{REPOSITORY}/smol_f8c16.pt"
    assert facts_of(stae("weights", "show", name, "--json"))["name"] == f"{name}@{COMMIT}"


def test_stae_weights_sets_the_default(hub, stae, tmp_path):
    assert stae("encode", tmp_path, tmp_path / "x", STAE_WEIGHTS="no").code != 0
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
    hub, stae, published, tmp_path
):
    (tmp_path / "mine.pt").write_bytes(published)
    mine = ("--weights", tmp_path / "mine.pt")
    made = stae("encode", EXAMPLES / "kodim23.png", tmp_path / "out", "--square", 8, *mine)
    assert made.code == 0, made.err
    decode = ("decode", tmp_path / "out", tmp_path / "pictures")
    assert "`mine.pt`, which is not available here" in stae(*decode).err
    assert hub.requests == []
    assert stae("weights", "fetch", "stupidae").code == 0
    ran = stae(*decode)
    assert ran.code == 0, ran.err

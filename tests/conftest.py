"""Fixtures for tests that go through the command line as a user would."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.launcher import Launcher
from tests.seeded import tiny_checkpoint

settings.register_profile("untimed", deadline=None)  # other work on the machine is no failure
settings.load_profile("untimed")

signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs come without one

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is first imported

# torch would use code that it compiled for another kind of CPU, as these variables emulate one.
kind = [torch.backends.cpu.get_cpu_capability(), os.environ.get("ONEDNN_MAX_CPU_ISA", "")]
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir(), "-".join(["stae-inductor", *kind])))
)


@dataclass(frozen=True)
class Ran:
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)

    def assert_fails(self, code: int, *words: str) -> None:
        """The exit code, one `error:` that holds the words, a `hint:`, and no traceback."""
        assert self.code == code, self.err
        assert "error: " in self.err
        assert "hint: " in self.err
        assert "Traceback" not in self.err
        for word in words:
            assert word in self.err


@pytest.fixture
def stae(capsys, monkeypatch):
    """Runs `stae ARGUMENTS` in this process; with a tiny network unless told otherwise."""
    from stae_cli.cli.main import main

    monkeypatch.delenv("STAE_WEIGHTS", raising=False)

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Ran(code, out, err)

    return run


@pytest.fixture(scope="session")
def launcher():
    """Starts real processes of `stae` at little cost; not on Windows."""
    with Launcher() as launcher:
        yield launcher


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The file of a tiny seeded checkpoint."""
    return tiny_checkpoint(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="session")
def other_tiny(tmp_path_factory):
    """The file of another tiny checkpoint, of the same shape."""
    return tiny_checkpoint(tmp_path_factory.mktemp("weights") / "other.safetensors", seed=2)


@pytest.fixture(scope="session")
def made_codecs():
    """The networks of `same_codec`."""
    return {}


@pytest.fixture
def same_codec(monkeypatch, made_codecs):
    """Commands share the network of a checkpoint, which takes most of their time to prepare."""
    from stae_cli.runs.workers import CodecMaker

    make = CodecMaker.codec_of

    def codec_of(self, checkpoint, device):
        key = (self.weights_sha256, self.dtype, self.batch_patches, str(device))
        if key not in made_codecs:
            made_codecs[key] = make(self, checkpoint, device)
        return made_codecs[key]

    monkeypatch.setattr(CodecMaker, "codec_of", codec_of)

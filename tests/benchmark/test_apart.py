"""Networks in processes of their own: what they compute, how they fail, and that they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from stae_cli.benchmark.apart import ProcessError, RigApart
from stae_cli.benchmark.report import Case
from stae_cli.benchmark.rig import Rig
from tests.launcher import wait_for
from tests.seeded import TINY, seeded_model
from tests.signals import heed_interrupts

CASE = Case(16, 8, batch=2)


@pytest.fixture
def apart() -> Iterator[RigApart]:
    made = RigApart("reference", seeded_model(TINY), torch.bfloat16)
    yield made
    made.end()


def test_a_process_does_what_this_one_would_until_it_dies(apart: RigApart) -> None:
    here = Rig(seeded_model(TINY), torch.device("cpu"), torch.bfloat16)
    for rig in (here, apart):
        rig.begin(CASE)
    assert apart.prepare("reference") == here.prepare("reference")
    assert apart.sample(("reference", "encoder")) > 0
    for ours, theirs in zip(here.outputs("reference"), apart.outputs("reference"), strict=True):
        np.testing.assert_allclose(theirs, ours, atol=0.01)
    peak = apart.peak_bytes()
    assert peak is not None
    assert peak > 100 << 20

    with pytest.raises(RuntimeError, match="has no bfloat16"):
        apart.prepare("onnxruntime")
    assert apart.sample(("reference", "decoder")) > 0

    (child,) = children_of(os.getpid(), "serve()")
    os.kill(child, signal.SIGKILL)
    with pytest.raises(ProcessError, match="process that timed reference ended with SIGKILL"):
        apart.sample(("reference", "encoder"))
    apart.begin(CASE)
    assert children_of(os.getpid(), "serve()") != [child]
    apart.end()
    assert children_of(os.getpid(), "serve()") == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_process_outlives_the_command(tiny: Path, tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to every process of the command; SIGKILL leaves no time."""
    interrupted, killed = (started(tiny, tmp_path / name) for name in ("interrupted", "killed"))
    children = [child for one in (interrupted, killed) for child in awaited_children(one)]
    time.sleep(0.5)  # a moment in which they import
    os.killpg(interrupted.pid, signal.SIGINT)
    killed.kill()
    assert (interrupted.wait(30), killed.wait(30)) == (130, -signal.SIGKILL)
    said = (tmp_path / "interrupted").read_text()
    assert "error: interrupted" in said
    assert "Traceback" not in said
    wait_for(lambda: not any(map(command_of, children)), seconds=30)


def started(weights: Path, log: Path) -> subprocess.Popen[bytes]:
    common = (sys.executable, "-m", "stae_cli", "bench", "--weights", weights, "--device", "cpu")
    with log.open("wb") as file:
        return subprocess.Popen(
            [*common, "--size", "16", "--seconds", "600", "--against", "reference"],
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=heed_interrupts,
        )


def awaited_children(process: subprocess.Popen[bytes]) -> list[int]:
    return wait_for(
        lambda: children_of(process.pid, "serve()"), ended=lambda: process.poll() is not None
    )


def children_of(parent: int, kind: str) -> list[int]:
    """Its processes whose command line has a word in it."""
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(child) for child in listed if kind in command_of(int(child))]


def command_of(process: int) -> str:
    """Empty where it has ended, also before its parent asks how."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""

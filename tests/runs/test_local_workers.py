"""Processes of one run: what reaches them while they start."""

import subprocess
import sys

import pytest

STARTED = """
import multiprocessing, signal
from stae_cli.interrupts import HELD
from stae_cli.runs.local_workers import _blocked_signals

if __name__ == "__main__":
    with _blocked_signals():
        child = multiprocessing.get_context("spawn").Process(target=print)
        child.start()
        print(set(HELD) <= signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    child.join()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_signals_stay_blocked_while_processes_start(tmp_path):
    """Also while the first one does, with which Python starts a process of its own."""
    script = tmp_path / "started.py"
    script.write_text(STARTED)
    ran = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    assert ran.stdout.split() == ["True"]

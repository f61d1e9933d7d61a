"""Real processes of `stae` that need not import torch first: forks of one that has.

They start in some hundredths of a second, and get signals as any process does.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path


class Launcher:
    """Starts processes and waits for them; a context manager."""

    def __init__(self) -> None:
        root = Path(__file__).parents[1]
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.launcher"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate(timeout=60)

    def start(self, *arguments: object, log: Path, environment: Mapping[str, str] = {}) -> int:
        """Starts `stae ARGUMENTS` with its output in `log`; returns the process's number."""
        request = {"argv": [str(a) for a in arguments], "log": str(log), "env": dict(environment)}
        return self._ask(request)

    def wait(self, process: int) -> int:
        """Waits for the end of a process; returns its exit code, negative for a signal."""
        return self._ask({"wait": process})

    def _ask(self, request: Mapping[str, object]) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())


def serve() -> None:
    """Answers one line of JSON after the other."""
    import torch  # noqa: F401

    import stae_cli.cli.main
    import stae_cli.codec.codec
    import stae_cli.runs.decode
    import stae_cli.runs.encode

    nowhere = io.StringIO()
    with contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        stae_cli.cli.main.main(["inspect", os.devnull])  # what the command line itself needs
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                run(request)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def run(request: Mapping[str, object]) -> None:
    """The new process; does not return."""
    from stae_cli.cli.main import run as stae
    from tests.signals import heed_interrupts

    heed_interrupts()
    log = os.open(str(request["log"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(request["env"])
    sys.argv = ["stae", *request["argv"]]
    code = 99
    try:
        stae()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 (into the log, as it would be without us)
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()

"""Real processes of `stae` that need not import torch first: forks of one that has.

They start in some hundredths of a second, and get signals as any process does.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any


class Process:
    """A process that a launcher has started, with what it has written in files beside `log`."""

    def __init__(self, launcher: Launcher, number: int, log: Path) -> None:
        self.launcher, self.number, self.log = launcher, number, log
        self.code: int | None = None

    @property
    def out(self) -> str:
        return _beside(self.log).read_text()

    @property
    def err(self) -> str:
        return self.log.read_text()

    def has_ended(self) -> bool:
        return self.code is not None or self.launcher.has_ended(self.number)

    def wait(self) -> int:
        """Returns the exit code, negative for a signal."""
        if self.code is None:
            self.code = self.launcher.wait(self.number)
        return self.code

    def end_by(self, number: int) -> int:
        """Sends a signal; returns the exit code."""
        os.kill(self.number, number)
        return self.wait()


def wait_for(
    condition: Callable[[], Any],
    *,
    ended: Callable[[], object] = lambda: False,
    seconds: float = 120,
) -> Any:
    """What the condition gives once it gives anything; an error once `ended` does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not ended():
        if found := condition():
            return found
        time.sleep(0.005)
    raise AssertionError("it did not happen")


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
        """Starts `stae ARGUMENTS` with its stderr in `log`; returns the process's number."""
        request = {"argv": [str(a) for a in arguments], "log": str(log), "env": dict(environment)}
        return self._ask(request)

    @contextlib.contextmanager
    def running(
        self, *arguments: object, log: Path, environment: Mapping[str, str] = {}
    ) -> Iterator[Process]:
        """A process of `stae ARGUMENTS`, gone afterwards."""
        process = Process(self, self.start(*arguments, log=log, environment=environment), log)
        try:
            yield process
        finally:
            if process.code is None:
                process.end_by(signal.SIGKILL)

    def has_ended(self, process: int) -> bool:
        return bool(self._ask({"ended": process}))

    def wait(self, process: int) -> int:
        """Waits for the end of a process; returns its exit code, negative for a signal."""
        return self._ask({"wait": process})

    def _ask(self, request: Mapping[str, object]) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())


@contextlib.contextmanager
def launcher_without_settings() -> Iterator[Launcher]:
    """A launcher whose processes know nothing of the user's checkpoint, token, or network."""
    names = ("STAE_WEIGHTS", "HF_TOKEN", "HF_HUB_OFFLINE")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        with Launcher() as launcher:
            yield launcher
    finally:
        os.environ.update(before)


def _beside(log: Path) -> Path:
    return log.with_name(f"{log.name}.out")


def serve() -> None:
    """Answers one line of JSON after the other."""
    import torch  # noqa: F401

    import stae_cli.cli.main
    import stae_cli.codec.codec
    import stae_cli.runs.decode
    import stae_cli.runs.encode
    import stae_cli.runs.roundtrip

    nowhere = io.StringIO()
    with contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        stae_cli.cli.main.main(["inspect", os.devnull])  # what the command line itself needs
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        elif "ended" in request:
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            answer = int(os.waitid(os.P_PID, request["ended"], options) is not None)
        else:
            answer = os.fork()
            if answer == 0:
                run(request)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def run(request: Mapping[str, object]) -> None:
    """The new process; does not return."""
    from stae_cli.cli.main import run as stae

    signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python starts
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    log = Path(str(request["log"]))
    for path, descriptor in ((_beside(log), 1), (log, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
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

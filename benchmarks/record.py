"""What the scripts share: options, runs of `stae`, timing in rounds, and records of results."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from time import perf_counter

import torch

from stae_cli.benchmark.report import Spread, describe_machine
from stae_cli.benchmark.stopwatch import rounds_of
from stae_cli.cli.main import main as stae

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PHOTOS = sorted((ROOT / "examples" / "photos").glob("*.[jpw]*[pg]"))


class CommandError(Exception):
    """A command failed."""


def options(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that `record` reads."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--results", default=RESULTS, type=Path, metavar="FOLDER", help="where to record results"
    )
    parser.add_argument("--commit", metavar="TEXT", help="instead of what `git describe` says")
    return parser


def record(given: argparse.Namespace, name: str, result: dict, device: str = "cpu") -> None:
    """Replaces `NAME.json`: a result, and the commit and the machine that it was measured on."""
    given.results.mkdir(parents=True, exist_ok=True)
    path = given.results / f"{name}.json"
    machine = asdict(describe_machine(torch.device(device)))
    about = {"commit": given.commit or described_commit(), "machine": machine}
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(about | result, indent=1) + "\n")
    partial.replace(path)  # so that no half of it is ever read
    print(f"recorded in {path}", file=sys.stderr, flush=True)


def described_commit() -> str:
    """The commit, `-dirty` if something but recorded results has changed; `unknown` without git."""
    commit = _git("describe", "--always")
    changed = _git(
        "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results"
    )
    return commit + "-dirty" * bool(changed) if commit else "unknown"


def _git(*arguments: str) -> str:
    """What git prints; nothing without git, or outside of a clone."""
    command = ["git", *arguments]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    except OSError:
        return ""
    return ran.stdout.strip()


def first_line(error: BaseException) -> str:
    """A reason short enough for a table."""
    text = getattr(error, "message", None) or str(error)
    return text.strip().partition("\n")[0] or type(error).__name__


def stae_json(*arguments: object) -> dict:
    """What `stae ARGUMENTS --json` prints, run in this process.

    Raises:
        CommandError: it failed; with its last words.
    """
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = stae([*map(str, arguments), "--json"])
    if code:
        last = " | ".join(err.getvalue().strip().splitlines()[-3:])
        raise CommandError(f"`stae {arguments[0]}` ended with {code}: {last}")
    return json.loads(out.getvalue())


def environment() -> dict[str, str]:
    """This process's, in which Python finds the checkout's own package first."""
    others = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *([others] if others else [])])}


def seconds_of(run: Callable[[], object]) -> Callable[[], float]:
    """A task for rounds: runs it and returns how long it took."""

    def timed() -> float:
        started = perf_counter()
        run()
        return perf_counter() - started

    return timed


def compared(first: str, second: str, tasks: Mapping[str, Callable[[], float]], seconds: float):
    """Two tasks in the same shuffled rounds, after one to warm up: seconds, and their ratio."""
    for task in tasks.values():
        task()
    rounds = rounds_of(tasks, seconds)
    times = {name: asdict(Spread.of([each[name] for each in rounds])) for name in tasks}
    ratio = Spread.of([each[first] / each[second] for each in rounds])
    return times | {f"{first} over {second}": asdict(ratio), "rounds": len(rounds)}

"""Where the measuring scripts write what they found, with the commit that it belongs to."""

import argparse
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Recorder:
    """Writes results as JSON; `commit` stands for what git would say."""

    folder: Path = RESULTS
    commit: str | None = None

    def __call__(self, name: str, result: dict) -> None:
        """Writes `NAME.json` anew, at once whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.json"
        partial = path.with_name(f".{path.name}.partial")
        commit = self.commit or described_commit()
        partial.write_text(json.dumps({"commit": commit, **result}, indent=1) + "\n")
        os.replace(partial, path)  # noqa: PTH105  # as everywhere, so that no half is ever read
        print(f"recorded in {path}", flush=True)


record = Recorder()


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that `recorder` reads."""
    folder = os.environ.get("OUT") or RESULTS
    parser.add_argument(
        "--out", default=folder, type=Path, metavar="FOLDER",
        help="where results are written; by default $OUT, else benchmarks/results",
    )  # fmt: skip
    parser.add_argument("--commit", metavar="TEXT", help="where git or its folder is missing")


def recorder(given: argparse.Namespace) -> Recorder:
    return Recorder(given.out, given.commit)


def described_commit() -> str:
    """What git says; `unknown` without git, or outside of its folders."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent
        )
    except OSError:
        return "unknown"
    return ran.stdout.strip() or "unknown"


def first_line(error: BaseException) -> str:
    """What a table has room for."""
    text = getattr(error, "message", None) or str(error)
    return text.strip().partition("\n")[0] or type(error).__name__

"""Runs `stae` as a user does, from this checkout, and reads what it prints as JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


class CommandError(Exception):
    """A command failed, or took too long."""


def stae_json(*arguments: object, timeout: float) -> dict:
    """What `stae ARGUMENTS --json` says.

    Raises:
        CommandError: it failed, with its last words, or it took more than `timeout` seconds.
    """
    command = [sys.executable, "-m", "stae_cli", *map(str, arguments), "--json"]
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment(),
            timeout=max(1.0, timeout),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"`stae {arguments[0]}` took more than {timeout:.0f} s") from error
    if ran.returncode:
        last = " | ".join(ran.stderr.strip().splitlines()[-3:])
        raise CommandError(f"`stae {arguments[0]}` ended with {ran.returncode}: {last}")
    return json.loads(ran.stdout)


def environment() -> dict[str, str]:
    """This process', where Python finds the checkout's own package first."""
    others = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *([others] if others else [])])}

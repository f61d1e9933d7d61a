"""Temporary files: what is being written lies in one beside its place; dead runs leave some."""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

TEMPORARY = re.compile(r"\.stae-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{8}\.tmp")
STALE_SECONDS = 24 * 3600
STARTED = time.time()  # this process, or a little later


def temporary_name() -> str:
    """A new name, which tells who writes there."""
    return f".stae-{host_name()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"


def remove_abandoned(folder: Path, names: Iterable[str]) -> None:
    """Removes those files of a folder that are temporary and no longer written by anyone."""
    for name in names:
        match = TEMPORARY.fullmatch(name)
        if match and _is_abandoned(folder / name, match):
            with suppress(OSError):  # another run may sweep too
                (folder / name).unlink()


def _is_abandoned(path: Path, match: re.Match[str]) -> bool:
    mine, pid = match["host"] == host_name(), int(match["pid"])
    if mine and not process_lives(pid):
        return True
    with suppress(OSError):
        changed = path.stat().st_mtime
        if mine and pid == os.getpid() and changed < STARTED:
            return True  # of an earlier process; in containers they often have one number
        return time.time() - changed > STALE_SECONDS
    return False


def host_name() -> str:
    """The name of this machine, as it stands in names of temporary files."""
    return re.sub(r"[^A-Za-z0-9.]", "", socket.gethostname()) or "localhost"


def process_lives(pid: int) -> bool:
    """Whether a process of this machine is there; on Windows one cannot ask."""
    if os.name == "nt":  # there os.kill would end it; age decides alone
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True

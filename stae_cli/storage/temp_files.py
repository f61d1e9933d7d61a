"""Temporary files: outputs are written to one and renamed; killed runs leave some behind."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_log = logging.getLogger(__name__)

TEMPORARY = re.compile(r"\.stae-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{8}\.tmp")
STALE_SECONDS = 24 * 3600
STARTED = time.time()  # this process, or a little later


def temporary_name() -> str:
    """A new name, which says which process writes the file."""
    return f".stae-{host_name()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"


def remove_abandoned(folder: Path, names: Iterable[str]) -> None:
    """Removes the temporary files of a folder whose process has ended."""
    for name in names:
        match = TEMPORARY.fullmatch(name)
        if match and _is_abandoned(folder / name, match):
            with suppress(OSError):  # another run may have removed it
                (folder / name).unlink()
                _log.info("removed `%s`, left by a run that was killed", folder / name)


def _is_abandoned(path: Path, match: re.Match[str]) -> bool:
    mine, pid = match["host"] == host_name(), int(match["pid"])
    if mine and not process_lives(pid):
        return True
    with suppress(OSError):
        changed = path.stat().st_mtime
        if mine and pid == os.getpid() and changed < STARTED:
            return True  # an earlier process; in containers many have the same id
        return time.time() - changed > STALE_SECONDS
    return False


def host_name() -> str:
    """The name of this machine, as in names of temporary files."""
    return re.sub(r"[^A-Za-z0-9.]", "", socket.gethostname()) or "localhost"


def process_lives(pid: int) -> bool:
    """Whether a process of this machine is running; always true on Windows."""
    if os.name == "nt":  # os.kill would end it there; only the age of its files decides
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True

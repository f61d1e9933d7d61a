"""Temporary files: their names, which say who writes them, and the removal of those left behind."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

_log = logging.getLogger(__name__)

OWNER = r"(?P<host>.+?)-(?P<pid>\d+)(-(?P<space>[0-9a-f]{8}))?"
TEMPORARY = re.compile(rf"\.stae-{OWNER}-[0-9a-f]{{8}}[^.]*\.tmp")
STALE_SECONDS = 24 * 3600
STALE_SECONDS_HERE = 3600  # on this machine, whose clock it is; writing a file takes seconds
STARTED = time.time()  # this process, or a little later


def temporary_name() -> str:
    """A new name, which says which process writes the file."""
    return f".stae-{owner()}-{secrets.token_hex(4)}.tmp"


def remove_abandoned(folder: Path, names: Iterable[str]) -> None:
    """Removes the temporary files of a folder whose process has ended."""
    for name in names:
        match = TEMPORARY.fullmatch(name)
        if not match:
            continue
        with suppress(OSError):  # another run may have removed it
            if is_abandoned(match, (folder / name).stat().st_mtime):
                (folder / name).unlink()
                _log.info("removed `%s`, left by a run that was killed", folder / name)


def owner() -> str:
    """The part of a temporary name that says which process it belongs to."""
    space = _process_space()
    return f"{host_name()}-{os.getpid()}" + (f"-{space}" if space else "")


def is_abandoned(match: re.Match[str], changed: float) -> bool:
    """Whether the process of a temporary name has ended, or has surely forgotten it.

    Args:
        match: of a pattern with `OWNER`.
        changed: when its file was last changed.
    """
    if match["host"] != host_name():
        return time.time() - changed > STALE_SECONDS
    pid = int(match["pid"])
    if match["space"] in (None, _process_space()):  # early versions did not record it
        if not process_lives(pid):
            return True
        if pid == os.getpid() and changed < STARTED:
            return True  # an earlier process; in containers many have the same id
    return time.time() - changed > STALE_SECONDS_HERE


def host_name() -> str:
    """The name of this machine, as in names of temporary files."""
    return re.sub(r"[^A-Za-z0-9.]", "", socket.gethostname()) or "localhost"


@cache
def _process_space() -> str:
    """What process numbers are unique in: this boot, and this container; "" if unknown.

    Containers that share a folder, and a host name, do not see each other's processes.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
        space = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:  # not Linux
        return ""
    return f"{zlib.crc32(boot + str(space).encode()):08x}"


def process_lives(pid: int) -> bool:
    """Whether a process of this machine is running; always true on Windows."""
    if os.name == "nt":  # os.kill would end it there; only the age of its files decides
        return True
    try:
        with suppress(PermissionError, OverflowError):
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

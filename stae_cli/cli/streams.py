"""The standard streams of the process: closed ones at its start, a full stdout at its end."""

from __future__ import annotations

import io
import os
import sys

LAST_STREAM = 2  # stderr


def open_streams() -> None:
    """Fills in for streams that the caller closed.

    Their numbers would go to the next files that are opened, and what libraries print with them.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= LAST_STREAM:
        pass
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = os.fdopen(LAST_STREAM, "w")
    if isinstance(sys.stdout, io.TextIOWrapper):  # names may hold what its encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")


def leave_stdout() -> None:
    """Drops what stdout did not take, about which the user knows; Python would write it again."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

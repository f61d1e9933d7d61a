"""A lock on a folder: one run at a time; the system lets go of it when a process dies."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> None:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock, a file that is there only while someone does.

    On file systems that have no locks it keeps nobody out.

    Raises:
        BlockingIOError: another one holds it.
        OSError: the file cannot be made.
    """
    file = _opened(path)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            path.unlink()
        file.close()
        if sys.platform == "win32":
            with suppress(OSError):
                path.unlink()


def _opened(path: Path) -> IO[bytes]:
    while True:
        file = path.open("ab")
        try:
            _lock(file)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass
        except BlockingIOError:
            file.close()
            raise
        except OSError:  # no locks here
            return file
        file.close()  # who held it removed it meanwhile: this one is no longer at the path

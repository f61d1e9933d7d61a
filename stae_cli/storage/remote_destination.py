"""Destinations on stores: outputs are written locally and uploaded, so that they appear whole."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from stae_cli.errors import StaeError, UsageError
from stae_cli.storage.destination import NO_TURN, Destination, FolderDestination
from stae_cli.storage.fsspec_store import Store, is_url, reaching, reason_of, store_at
from stae_cli.storage.remote_entry import RemoteOutput
from stae_cli.storage.temp_files import OWNER, is_abandoned, owner

_log = logging.getLogger(__name__)

# Stores where an upload appears whole or not at all; elsewhere readers could see half a file.
WHOLE = {"s3", "s3a", "gs", "gcs", "hf", "az", "abfs", "abfss", "oss", "memory"}
PROBE = ".stae-probe"
TEMPORARY_FOLDER = re.compile(rf"stae-{OWNER}-\w+")


def destination_at(where: Path | str) -> Destination:
    """The destination that a path or a URL names.

    Raises:
        UsageError: there is no such kind of store, or it cannot write atomically.
        StaeError: a package is missing.
    """
    if isinstance(where, Path) or not is_url(where):
        return FolderDestination(Path(where))
    protocol = where.partition("://")[0]
    if protocol.lower() not in WHOLE:
        raise UsageError(
            f"`{protocol}://` cannot be DEST: that store cannot write atomically",
            f"give a folder, or one of {', '.join(sorted(WHOLE))}",
        )
    return RemoteDestination(store_at(where))


def local_folder(dest: Path | str) -> FolderDestination:
    """The destination of a run that writes to local folders only.

    Raises:
        UsageError: a URL.
    """
    if is_url(dest):
        raise UsageError(f"DEST `{dest}` is a URL", "pictures are written to folders only")
    return FolderDestination(Path(dest))


class RemoteDestination(Destination):
    """A prefix on a store.

    Args:
        store: may be empty.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def prepare(self) -> None:
        _sweep()
        with self.reporting():
            with suppress(FileNotFoundError):
                if self.store.kind() == "file":
                    raise UsageError(f"DEST `{self.place()}` is an object", "give a folder")
            self._probe()

    def place(self, name: str = "") -> str:
        return self.store.place(name)

    def entry(self, name: str) -> RemoteOutput:
        return RemoteOutput(name, self.store)

    def names(self) -> Iterator[str]:
        with reaching(self.place()):
            found = self.store.objects()
        yield from (name for name, _ in found)

    def top_names(self) -> list[str]:
        with reaching(self.place()):
            return self.store.top_names()

    @contextmanager
    def writing(self, name: str, turn: AbstractContextManager[object] = NO_TURN) -> Iterator[Path]:
        with turn, _temporary_folder() as folder, self.reporting(name):
            path = folder / "output"
            yield path
            self.store.put(path, name)

    def create(self, name: str, data: bytes) -> bool:
        if self.holds(name):
            return False
        with self.writing(name) as path:
            path.write_bytes(data)
        return True

    def failure(self, error: OSError, name: str) -> StaeError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StaeError(
                f"the disk is full: `{tempfile.gettempdir()}`, where outputs are written first",
                "free some disk space, or set `TMPDIR` to another folder; then run it again",
            )
        return StaeError(
            f"cannot write `{self.place(name)}`: {reason_of(error)}",
            "check the name, the credentials and the network; finished outputs are kept",
        )

    def remove(self, name: str) -> None:
        with self.reporting(name):
            self.store.remove(name)

    def _probe(self) -> None:
        """Finds out now, not after hours, whether the store is writable."""
        with _temporary_folder() as folder:
            probe = folder / "probe"
            probe.touch()
            self.store.put(probe, PROBE)
        with suppress(PermissionError):  # writing is all that is needed
            self.store.remove(PROBE)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A local folder of this process, removed afterwards."""
    prefix = f"stae-{owner()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _sweep() -> None:
    """Removes the folders of processes that have ended."""
    with os.scandir(tempfile.gettempdir()) as items:
        for item in items:
            match = TEMPORARY_FOLDER.fullmatch(item.name)
            with suppress(OSError):  # another run may have removed it
                if match and is_abandoned(match, item.stat().st_mtime):
                    shutil.rmtree(item.path, ignore_errors=True)
                    _log.info("removed `%s`, left by a run that was killed", item.path)

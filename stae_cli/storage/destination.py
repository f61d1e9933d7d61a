"""DEST: a place in which each output appears whole or not at all, and its temporary files."""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from stae_cli.errors import StaeError, UsageError
from stae_cli.storage.entry import Entry, FileEntry
from stae_cli.storage.names import EXACT, NameRules

_log = logging.getLogger(__name__)

TEMPORARY = re.compile(r"\.stae-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{8}[^.]*\.tmp")
STALE_SECONDS = 24 * 3600
STARTED = time.time()  # this process, or a little later


class Destination(ABC):
    """Where a run writes its outputs; their names are relative to it, with `/`."""

    @abstractmethod
    def prepare(self) -> None:
        """Creates it, checks that it is writable, and removes what killed runs left.

        Raises:
            UsageError: it is a file.
            StaeError: it cannot be created or written to.
        """

    @property
    def rules(self) -> NameRules:
        """Which names are the same file there; to be asked once it is prepared."""
        return EXACT

    @abstractmethod
    def place(self, name: str = "") -> str:
        """The location of the output `name`, or of DEST itself, for messages."""

    @abstractmethod
    def entry(self, name: str) -> Entry:
        """The output `name`, for reading; it need not exist."""

    def holds(self, name: str) -> bool:
        """Whether the output `name` exists and can be reached."""
        try:
            self.entry(name).state()
        except OSError:
            return False
        return True

    @abstractmethod
    def names(self) -> Iterator[str]:
        """The names of all files there, in a stable order."""

    @abstractmethod
    def top_names(self) -> list[str]:
        """The names of the files directly in it."""

    @abstractmethod
    def writing(self, name: str) -> AbstractContextManager[Path]:
        """Yields a temporary local path, which becomes the output if the block succeeds.

        Raises:
            StaeError: the disk is full, or DEST cannot be written to.
        """

    @abstractmethod
    def failure(self, error: OSError, name: str) -> StaeError:
        """The error to raise when the output `name`, or DEST itself, cannot be written."""

    @contextmanager
    def reporting(self, name: str = "") -> Iterator[None]:
        """Raises errors of the operating system in its block as `failure` gives them."""
        try:
            yield
        except OSError as error:
            raise self.failure(error, name) from error

    @abstractmethod
    def remove(self, name: str) -> None:
        """Removes an output, if it exists.

        Raises:
            StaeError: it cannot be removed.
        """


class FolderDestination(Destination):
    """A local folder.

    Args:
        folder: created, with its parents, by `prepare`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: set[Path] = set()

    def __reduce__(self) -> tuple[type[FolderDestination], tuple[Path]]:
        """Pickles the path alone: what was created here says nothing of another machine."""
        return FolderDestination, (self.folder,)

    def prepare(self) -> None:
        with self.reporting():
            self._refuse_files()
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / temporary_name()
            probe.touch()
            probe.unlink()
        for parent, _, names in os.walk(self.folder):
            remove_abandoned(Path(parent), names)

    def _refuse_files(self) -> None:
        """Raises UsageError if DEST, or what it is in, is a file or a link that leads nowhere."""
        for place in (self.folder, *self.folder.parents):
            if place.is_dir():
                return
            if os.path.lexists(place):
                what = "a file" if place.exists() else "a link that leads nowhere"
                where = "is" if place is self.folder else f"cannot be made: `{place}` is"
                raise UsageError(f"DEST `{self.folder}` {where} {what}", "give a folder")

    @property
    def rules(self) -> NameRules:
        return NameRules(
            case=self._finds("a", "A"),
            form=self._finds("\u00e9", "e\u0301"),
        )

    def _finds(self, one: str, other: str) -> bool:
        """Whether a file whose name ends in `one` is found by the `other` ending."""
        name = temporary_name().removesuffix(".tmp")
        probe, twin = self.folder / f"{name}{one}.tmp", self.folder / f"{name}{other}.tmp"
        try:
            probe.touch()
            try:
                return twin.exists()
            finally:
                probe.unlink()
        except (OSError, UnicodeError):  # it cannot have such names at all
            return False

    def path(self, name: str = "") -> Path:
        """The path of the output `name`, or of DEST itself."""
        return self.folder.joinpath(*name.split("/"))

    def place(self, name: str = "") -> str:
        return str(self.path(name))

    def entry(self, name: str) -> FileEntry:
        return FileEntry(name, str(self.path(name)))

    def names(self) -> Iterator[str]:
        for parent, folders, names in os.walk(self.folder):
            folders.sort()
            prefix = Path(parent).relative_to(self.folder).as_posix() + "/"
            prefix = "" if prefix == "./" else prefix
            yield from (prefix + name for name in sorted(names))

    def top_names(self) -> list[str]:
        with self.reporting(), os.scandir(self.folder) as found:
            return sorted(item.name for item in found)

    def failure(self, error: OSError, name: str) -> StaeError:
        target = self.path(name)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some disk space and run the same command again: it resumes"
            return StaeError(f"the disk is full: cannot write `{target}`", hint)
        reason = error.strerror or str(error)
        return StaeError(f"cannot write `{target}`: {reason}", "check DEST and its permissions")

    def remove(self, name: str) -> None:
        with self.reporting(name):
            self.path(name).unlink(missing_ok=True)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        target = self.path(name)
        temporary, moved = target.parent / temporary_name(), False
        try:
            with self.reporting(name):
                self._make(target.parent)
                yield temporary
                temporary.replace(target)
            moved = True
        finally:
            if not moved:
                with suppress(OSError):  # it may not exist
                    temporary.unlink()

    def _make(self, folder: Path) -> None:
        """Creates a folder in DEST, but not DEST: if that was removed, so was its record."""
        if folder in self._made or folder == self.folder:
            return
        self._make(folder.parent)
        folder.mkdir(exist_ok=True)
        self._made.add(folder)


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
        with suppress(PermissionError, OverflowError):
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

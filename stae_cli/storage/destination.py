"""DEST: a place in which each output appears whole or not at all, also if the power fails."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from stae_cli.errors import StaeError, UsageError
from stae_cli.storage.entry import Entry, FileEntry
from stae_cli.storage.names import EXACT, NameRules
from stae_cli.storage.temp_files import remove_abandoned, temporary_name

SYNCS = 16  # at once: a disk completes many together in the time of one
NOT_SYNCED = (errno.EINVAL, errno.ENOTSUP)  # by some network file systems
NO_TURN = nullcontext()


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
    def writing(
        self, name: str, turn: AbstractContextManager[object] = NO_TURN
    ) -> AbstractContextManager[Path]:
        """Yields a temporary local path, which becomes the output if the block succeeds.

        Args:
            name: of the output.
            turn: held while the block runs, but not while a disk completes the file.

        Raises:
            StaeError: the disk is full, or DEST cannot be written to.
        """

    def finish(self) -> None:  # noqa: B027 (stores keep what was uploaded)
        """Has the disk store the names of all outputs that were written here.

        Raises:
            StaeError: DEST cannot be written to.
        """

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Writes an output unless it exists, and returns whether it did.

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
        self._above = str(folder / "x")[:-1]  # text: names are joined many times for each output
        self._made: set[str] = set()
        self._changed: set[str] = set()

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
        return Path(self.place(name))

    def place(self, name: str = "") -> str:
        return self._above + name.replace("/", os.sep) if name else str(self.folder)

    def entry(self, name: str) -> FileEntry:
        return FileEntry(name, self.place(name))

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
            hint = "free some disk space and run the same command again"
            return StaeError(f"the disk is full: cannot write `{target}`", hint)
        reason = error.strerror or str(error)
        return StaeError(f"cannot write `{target}`: {reason}", "check DEST and its permissions")

    def remove(self, name: str) -> None:
        with self.reporting(name):
            self.path(name).unlink(missing_ok=True)

    @contextmanager
    def writing(self, name: str, turn: AbstractContextManager[object] = NO_TURN) -> Iterator[Path]:
        inside = name.rpartition("/")[0]
        folder = self.place(inside)
        temporary, moved = os.path.join(folder, temporary_name()), False  # noqa: PTH118
        try:
            with self.reporting(name):
                with turn:
                    self._make(inside)
                    yield Path(temporary)
                _sync_file(temporary)
                os.replace(temporary, self.place(name))  # noqa: PTH105
            moved = True
            self._changed.add(folder)
        finally:
            if not moved:
                with suppress(OSError):  # it may not exist
                    os.unlink(temporary)  # noqa: PTH108

    def create(self, name: str, data: bytes) -> bool:
        target = self.path(name)
        temporary = target.parent / temporary_name()
        with self.reporting(name):
            try:
                temporary.write_bytes(data)
                _sync_file(str(temporary))
                return _linked(temporary, target) or _created(target, data)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)

    def finish(self) -> None:
        folders, self._changed = self._changed, set()
        if os.name == "nt":  # has no such thing
            return
        with self.reporting(), ThreadPoolExecutor(SYNCS) as pool:
            list(pool.map(_sync_folder, folders))

    def _make(self, name: str) -> None:
        """Creates a folder in DEST, but not DEST: if that was removed, so was its record."""
        if not name or name in self._made:
            return
        above = name.rpartition("/")[0]
        self._make(above)
        self.path(name).mkdir(exist_ok=True)
        self._made.add(name)
        self._changed.add(self.place(above))


def _linked(source: Path, target: Path) -> bool:
    """Links the target, whole at once, unless it exists; False where there are no links."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def _created(target: Path, data: bytes) -> bool:
    with target.open("xb") as file:
        file.write(data)
    return True


def _sync_file(path: str) -> None:
    """Has the disk store a file's data; else its name could outlive them at a power failure."""
    _sync(os.open(path, os.O_RDWR))  # Windows syncs only what can be written to


def _sync_folder(folder: str) -> None:
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:  # removed, or not readable
        return
    _sync(number)


def _sync(number: int) -> None:
    """Syncs an open file or folder where that is possible, and closes it."""
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in NOT_SYNCED:
            raise
    finally:
        os.close(number)

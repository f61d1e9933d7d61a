"""The folder beside a checkpoint that is being trained: lock, state, log and pictures."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stae_cli.checkpoints.checkpoint import read_checkpoint
from stae_cli.checkpoints.names import SAFETENSORS_SUFFIX
from stae_cli.checkpoints.tensor_files import fingerprint
from stae_cli.errors import CheckpointError, StaeError, UsageError
from stae_cli.training.recipe import differences
from stae_cli.training.state import Log, State, damage_reported, load_state, save_state

SUFFIX = ".training"
LOCK = ".lock"
LOCK_SECONDS = 0.2  # to wait for a run that is just letting go
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}  # what file systems without them answer
LOG, CURVE, SAMPLES = "log.jsonl", "curve.png", "samples.png"

_log = logging.getLogger(__name__)


class Workspace:
    """`NAME.training/` beside `NAME.safetensors`.

    Args:
        out: the checkpoint that the run will write.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.with_name(out.stem + SUFFIX)
        self.state = self.folder / "state.pt"
        self.last = self.folder / "last.safetensors"
        self.log = Log(self.folder / LOG)
        self.curve = self.folder / CURVE
        self.samples = self.folder / SAMPLES
        self._replaced: str | None = None  # digest of the file that the run will replace, if any

    def check(self, *, overwrite: bool) -> None:
        """Checks the checkpoint's name before anything is read; nothing is written.

        Raises:
            UsageError: it is not the name of a .safetensors file, or the file exists and no run
                is unfinished.
        """
        if self.out.suffix != SAFETENSORS_SUFFIX:
            raise UsageError(f"`{self.out}` does not end in .safetensors", "name such a file")
        if self.out.exists() and not self.out.is_file():
            raise UsageError(f"`{self.out}` is a folder or a special file", "name a file")
        if self.out.exists() and not overwrite and not self.state.exists():
            raise self._exists()

    def resume(self, settings: str, *, overwrite: bool) -> dict[str, Any] | None:
        """The last state of an unfinished run with these settings; None to start from step 0.

        A run that was started with `--overwrite` need not be given it again.

        Args:
            settings: JSON of all that must be the same when a run is resumed.
            overwrite: whether the checkpoint, and a state of other settings, may be replaced.

        Raises:
            UsageError: the checkpoint exists, and is not the one that the run would replace.
            StaeError: there is a state of other settings, or it is damaged.
        """
        saved, there = load_state(self.state), _digest(self.out)
        same = saved if saved and saved.settings == settings else None
        if there and not overwrite and not (same and self._may_replace(there, same)):
            raise self._exists()
        if saved and not same and not overwrite:
            what = "; ".join(differences(saved.settings, settings))
            raise StaeError(
                f"the run in `{self.folder}` has other settings: {what}",
                "repeat its settings to go on, or start again with `--overwrite`",
            )
        if same:
            _log.info("going on from `%s`", self.state)
        else:
            _log.info("`%s` %s", self.state, "has other settings" if saved else "does not exist")
        self._replaced = same.replaces if same else there
        return same.loop if same else None

    def _may_replace(self, there: str, saved: State) -> bool:
        """Whether the checkpoint is what it was when the run began, or what the run made of it."""
        if there == saved.replaces:
            return True
        try:
            made = read_checkpoint(self.out, name=self.out.name)
        except CheckpointError:
            return False
        with damage_reported(self.state):
            return made.fingerprint == fingerprint(saved.loop["average"])

    def _exists(self) -> UsageError:
        return UsageError(f"`{self.out}` exists", "give another name, or `--overwrite`")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Makes the folder and keeps other runs out of it; removes it again if it stays empty.

        Raises:
            StaeError: it cannot be made, or another run holds it.
        """
        made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        with ExitStack() as stack:
            stack.callback(_remove_empty, made)
            with self._changing():
                self.folder.mkdir(parents=True, exist_ok=True)
                try:
                    stack.enter_context(locked(self.folder / LOCK))
                except Timeout as error:
                    raise StaeError(
                        f"another run is at work in `{self.folder}`",
                        "wait until it ends, or give another `--out`",
                    ) from error
            yield

    def clear(self) -> None:
        """Removes what an earlier run left.

        Raises:
            StaeError: that cannot be done.
        """
        with self._changing():
            for path in (self.state, self.last, self.log.path):
                path.unlink(missing_ok=True)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StaeError(
                f"cannot write to `{self.folder}`: {error.strerror or error}",
                "give another `--out`",
            ) from error

    def save(self, settings: str, state: Mapping[str, Any]) -> None:
        """Replaces the state.

        Raises:
            StaeError: it cannot be written; the old one stays.
        """
        save_state(self.state, State(settings, self._replaced, dict(state)))

    def finish(self) -> None:
        """Removes what only an unfinished run needs."""
        self.state.unlink(missing_ok=True)
        self.last.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock that the system releases when a process dies; its file goes with it.

    On file systems without locks it keeps nobody out.

    Raises:
        Timeout: another process holds it.
        OSError: the file cannot be created.
    """
    lock = FileLock(path, timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except OSError as error:
        if isinstance(error, Timeout) or error.errno not in NO_LOCKS:
            raise
        _log.info("`%s`: this file system has no locks", path)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            path.unlink()
        lock.release()
        if os.name == "nt":
            with suppress(OSError):
                path.unlink()


def _remove_empty(folders: Sequence[Path]) -> None:
    with suppress(OSError):  # from the first one that is not empty on
        for folder in folders:
            folder.rmdir()


def is_of_a_run(picture: Path) -> bool:
    """Whether a training run drew this picture: by its name, in a run's folder, which has a log."""
    if picture.name not in (CURVE, SAMPLES):
        return False
    folder = picture.resolve().parent
    return folder.suffix == SUFFIX and (folder / LOG).is_file()


def _digest(path: Path) -> str | None:
    """Of a file's bytes; None if it is not there."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StaeError(
            f"cannot read `{path}`: {error.strerror or error}", "give another `--out`"
        ) from error

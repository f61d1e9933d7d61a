"""A folder that appears whole: written beside its place under a temporary name, then renamed."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stae_cli.errors import StaeError
from stae_cli.storage.temp_files import TEMPORARY, is_abandoned, temporary_name

_log = logging.getLogger(__name__)


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder, which takes the place of `folder` if the block succeeds.

    A mount, as containers have them, cannot be replaced: there the files take the place of what it
    holds, each at once, hidden ones last.

    Raises:
        StaeError: the disk is full, or the folder cannot be written to; as of the block itself.
    """
    try:
        folder = Path(os.path.realpath(folder))
        is_mount = os.path.ismount(folder)
        above = folder if is_mount else folder.parent
        above.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(above)
        temporary = above / temporary_name()
        temporary.mkdir()
        try:
            yield temporary
            _sync()
            if is_mount:
                _move_inside(temporary, folder)
            else:
                _replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # renamed if all went well
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"the disk is full: cannot write `{folder}`"
            raise StaeError(message, "free some disk space") from error
        reason = error.strerror or error
        raise StaeError(
            f"cannot write `{folder}`: {reason}", "check DEST and its permissions"
        ) from error


def contents(folder: Path) -> list[Path]:
    """What is in a folder, without what processes write there or have left there."""
    return [path for path in folder.iterdir() if not TEMPORARY.fullmatch(path.name)]


def _replace(temporary: Path, folder: Path) -> None:
    if not folder.is_dir():
        temporary.rename(folder)
        return
    before = folder.parent / temporary_name()
    folder.rename(before)
    temporary.rename(folder)
    shutil.rmtree(before, ignore_errors=True)


def _move_inside(temporary: Path, folder: Path) -> None:
    for path in contents(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    for path in sorted(temporary.iterdir(), key=lambda path: path.name.startswith(".")):
        path.rename(folder / path.name)


def _remove_abandoned(parent: Path) -> None:
    """Removes what processes left that were killed."""
    for path in parent.iterdir():
        match = TEMPORARY.fullmatch(path.name)
        if match and path.is_dir() and is_abandoned(match, path.stat().st_mtime):
            shutil.rmtree(path, ignore_errors=True)
            _log.info("removed `%s`, left by a process that was killed", path)


def _sync() -> None:
    """Has the disks store everything: else names could outlive data at a power failure.

    At once, not file by file: a tree has as many as there are latents.
    """
    if hasattr(os, "sync"):  # not on Windows
        os.sync()

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

    Raises:
        StaeError: the disk is full, or the folder cannot be written to; as of the block itself.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder.parent)
        temporary = folder.parent / temporary_name()
        temporary.mkdir()
        try:
            yield temporary
            _sync()
            if folder.is_dir():
                before = folder.parent / temporary_name()
                folder.rename(before)
                temporary.rename(folder)
                shutil.rmtree(before, ignore_errors=True)
            else:
                temporary.rename(folder)
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

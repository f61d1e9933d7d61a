"""Folders: the files below them in name order, each real folder once."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from stae_cli.storage.entry import FileEntry, Problem
from stae_cli.storage.names import suffix_of
from stae_cli.storage.noted import Beside, Table, is_table
from stae_cli.storage.remote_entry import NO_SUFFIX
from stae_cli.storage.shares import is_shared_file

_log = logging.getLogger(__name__)

OWN_FILES = ("stae.json", "pruned.json")
SHARED_FILES = ("failures", "manifest", "orphans", "part")
SYSTEM_FOLDERS = ("@eaDir", "#recycle", "__MACOSX")  # thumbnails and deleted files, on NAS and Macs
NEVER_LATENTS = ("._", ".stae-")  # what macOS leaves on other disks, and our temporary files

# Kinds of files that are passed over, besides their suffixes.
SPECIAL = "special files"
LINKS = "links to folders that are read by their own path"


def list_folder(
    source: Path, wanted: frozenset[str], is_skipped: Callable[[str], bool], *, notes: bool
) -> Iterator[FileEntry | Table | Problem | str]:
    """The inputs below a folder, in name order; the kind of each file that is passed over.

    Args:
        source: the folder.
        wanted: lowercase suffixes, with the dot, of inputs.
        is_skipped: whether to skip files and folders of this name.
        notes: whether to find what is said of pictures, too.
    """
    root, seen = os.path.realpath(source), set[str]()
    stack = [("", source)]
    while stack:
        prefix, folder = stack.pop()
        real = os.path.realpath(folder)
        if real in seen or _has_another_path(real, root, prefix, is_skipped):
            _log.debug("skipped `%s`: a link to the folder `%s`, which is read too", folder, real)
            yield LINKS
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as found:
                items = sorted(found, key=lambda item: item.name)
        except OSError as error:
            reason = f"cannot read the folder: {error.strerror or error}"
            yield Problem(prefix or str(source), reason)
            continue
        subfolders = []
        beside = Beside.of((item.name for item in items), wanted) if notes else Beside()
        for item in items:
            if is_skipped(item.name):
                _log.debug("skipped `%s`: hidden, or written by stae", item.path)
            elif is_folder(item):
                subfolders.append((f"{prefix}{item.name}/", Path(item.path)))
            elif notes and is_table(key := prefix + item.name):
                yield Table(FileEntry(key, item.path), key)
            elif not beside.has(item.name):
                yield _entry(item, prefix, wanted, beside)
        stack.extend(reversed(subfolders))  # popped in name order


def _has_another_path(real: str, root: str, prefix: str, is_skipped: Callable[[str], bool]) -> bool:
    """Whether a folder was reached by a link, but is also found below `root` without one.

    That path counts, whichever sorts first: a new link must not change the keys of what is there.
    """
    if real == os.path.join(root, prefix).removesuffix("/"):  # noqa: PTH118
        return False
    if real == root:
        return True
    below = real.removeprefix(os.path.join(root, ""))  # noqa: PTH118
    return below != real and not any(map(is_skipped, Path(below).parts))


def _entry(
    item: os.DirEntry[str], prefix: str, wanted: frozenset[str], beside: Beside
) -> FileEntry | str:
    suffix = suffix_of(item.name)
    if suffix not in wanted:
        _log.debug("skipped `%s`: its suffix", item.path)
        return suffix or NO_SUFFIX
    if _is_special(item):
        _log.debug("skipped `%s`: not a regular file", item.path)
        return SPECIAL
    return FileEntry(prefix + item.name, item.path, beside.sidecars(item.name))


def is_hidden(name: str) -> bool:
    """Whether a file is hidden, or one that stae writes beside latents."""
    return name.startswith(".") or name in SYSTEM_FOLDERS or is_own(name)


def is_never_a_latent(name: str) -> bool:
    """Whether a file is another program's or a temporary one, though it may look like a latent."""
    return name.startswith(NEVER_LATENTS) or is_own(name)


def is_own(name: str) -> bool:
    """Whether a file of this name is one that stae writes beside latents."""
    return name in OWN_FILES or any(is_shared_file(name, own) for own in SHARED_FILES)


def is_folder(item: os.DirEntry[str]) -> bool:
    """Whether this is a folder, or a link to one."""
    try:
        return item.is_dir()
    except OSError:  # a link to itself: tried as a file, so that it is listed
        return False


def _is_special(item: os.DirEntry[str]) -> bool:
    """Whether this is a pipe, socket or device, which must not be opened."""
    try:
        return not stat.S_ISREG(item.stat().st_mode)
    except OSError:  # a broken link: tried as a file, so that it is listed
        return False

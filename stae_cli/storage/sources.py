"""Sources: the inputs in files, folders, URLs and lists, and their keys."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from stae_cli.errors import StaeError, UsageError
from stae_cli.storage import tars
from stae_cli.storage.entry import Entry, FileEntry, Problem
from stae_cli.storage.fsspec_store import is_url
from stae_cli.storage.remote_entry import RemoteEntry, list_objects
from stae_cli.storage.shares import is_shared_file
from stae_cli.storage.tars import Tar, tar_of

_log = logging.getLogger(__name__)

OWN_FILES = ("stae.json", "pruned.json")
SHARED_FILES = ("failures", "manifest", "orphans", "part")
NEVER_LATENTS = ("._", ".stae-")  # what macOS leaves on other disks, and our temporary files

Found = FileEntry | RemoteEntry | Problem | None  # None: a file that is skipped


@dataclass
class Listing:
    """What the sources hold, in a stable order, and how many files were skipped."""

    entries: list[Entry] = field(default_factory=list)
    tars: list[Tar] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    passed_over: int = 0


@dataclass(frozen=True)
class SourceList:
    """The lines of a list; paths are relative to `folder`."""

    lines: tuple[str, ...]
    folder: Path

    def entries(self) -> Iterator[FileEntry | Problem]:
        """The file of each line that is not blank, in order.

        Its key is the path as written; of an absolute path, without the root.
        """
        for line in self.lines:
            if line.strip():
                yield self._entry(line)

    def _entry(self, line: str) -> FileEntry | Problem:
        path = PurePath(line)
        if is_url(line):
            return Problem(line, "a URL in a list; give it as SOURCE")
        if ".." in path.parts or "\0" in line:
            return Problem(line, "its path leads out of the list's folder; use an absolute path")
        key = path.relative_to(path.anchor) if path.anchor else path
        return FileEntry(key.as_posix(), str(self.folder / path))


def read_list(file: Path) -> SourceList:
    """Reads a list from a file; its paths are relative to the folder of that file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        message = f"cannot read the list `{file}`: {error.strerror or error}"
        raise UsageError(message, "check `--from-list`") from error
    return parse_list(data, file.parent)


def parse_list(data: bytes, folder: Path) -> SourceList:
    """A list from its bytes: UTF-8, or the bytes of file names that are not UTF-8."""
    text = data.decode("utf-8-sig", "surrogateescape")
    return SourceList(tuple(line.removesuffix("\r") for line in text.split("\n")), folder)


def list_sources(
    sources: Sequence[Path | str],
    dest: Path | str | None,
    *,
    suffixes: Iterable[str],
    with_tars: bool = False,
    listed: SourceList | None = None,
    hidden: bool = False,
) -> Listing:
    """Lists every input below the sources.

    Folders are read recursively in name order. Hidden files are skipped, links are followed, and
    each real folder is read once per SOURCE. A file given as SOURCE is always taken.

    Args:
        sources: files, folders or URLs.
        dest: where results will go, if anywhere; it must not be inside a source folder.
        suffixes: lowercase suffixes, with the dot, of the files to take from folders.
        with_tars: whether to take tars too.
        listed: more files, which are always taken.
        hidden: whether to take hidden files too; latents are named after their pictures.

    Raises:
        UsageError: a source does not exist, or DEST is inside one.
        StaeError: nothing was found, or a store cannot be reached.
    """
    wanted = frozenset(suffixes) | ({tars.SUFFIX} if with_tars else set())
    for source in sources:
        if not is_url(source):
            _check_source(Path(source), dest)
    listing = list_below(sources, wanted, dest=dest, hidden=hidden)
    for found in listed.entries() if listed else ():
        _add(found, wanted, listing)
    if not (listing.entries or listing.tars or listing.problems):
        where = ", ".join(f"`{source}`" for source in sources) or "the list"
        passed = f" ({listing.passed_over} other files)" if listing.passed_over else ""
        raise StaeError(
            f"no inputs found in {where}{passed}",
            f"files with these suffixes are read: {', '.join(sorted(wanted))}",
        )
    return listing


def list_below(
    sources: Sequence[Path | str],
    wanted: frozenset[str],
    *,
    dest: Path | str | None = None,
    hidden: bool = False,
) -> Listing:
    """Like `list_sources`, of sources that exist; the result may be empty."""
    listing = Listing()
    found: Iterator[Found]
    is_skipped = _is_never_a_latent if hidden else _is_hidden
    for source in sources:
        if isinstance(source, str) and is_url(source):
            found = list_objects(source, dest, suffixes=wanted, is_skipped=is_skipped)
        elif (path := Path(source)).is_dir():
            found = _list_folder(path, wanted, is_skipped)
        else:
            found = iter([FileEntry(path.name, str(path))])
        for item in found:
            _add(item, wanted, listing)
    return listing


def _check_source(source: Path, dest: Path | str | None) -> None:
    if not os.path.lexists(source):
        raise UsageError(f"no such file or folder: `{source}`", "check the path")
    if dest is None or is_url(dest) or not source.is_dir():
        return
    if Path(dest).resolve().is_relative_to(source.resolve()):
        raise UsageError(
            f"DEST `{dest}` is inside SOURCE `{source}`", "choose a DEST outside of it"
        )


def _list_folder(
    source: Path, wanted: frozenset[str], is_skipped: Callable[[str], bool]
) -> Iterator[Found]:
    """Like `list_objects`, of a folder."""
    seen: set[str] = set()
    stack = [("", source)]
    while stack:
        prefix, folder = stack.pop()
        real = os.path.realpath(folder)
        if real in seen:
            _log.debug("skipped `%s`: the folder `%s` has been read", folder, real)
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
        for item in items:
            if is_skipped(item.name):
                _log.debug("skipped `%s`: hidden, or written by stae", item.path)
            elif _is_folder(item):
                subfolders.append((f"{prefix}{item.name}/", Path(item.path)))
            else:
                yield _entry(item, prefix, wanted)
        stack.extend(reversed(subfolders))  # popped in name order


def _entry(item: os.DirEntry[str], prefix: str, wanted: frozenset[str]) -> FileEntry | None:
    suffix = os.path.splitext(item.name)[1].lower()  # noqa: PTH122 (several times as fast)
    if suffix not in wanted:
        _log.debug("skipped `%s`: its suffix", item.path)
        return None
    if _is_special(item):
        _log.debug("skipped `%s`: not a regular file", item.path)
        return None
    return FileEntry(prefix + item.name, item.path)


def _add(found: Found, wanted: frozenset[str], listing: Listing) -> None:
    if found is None:
        listing.passed_over += 1
    elif isinstance(found, Problem):
        listing.problems.append(found)
    elif tars.SUFFIX in wanted and found.key.lower().endswith(tars.SUFFIX):
        listing.tars.append(tar_of(found))
    else:
        listing.entries.append(found)


def _is_hidden(name: str) -> bool:
    """Whether a file is hidden, or one that stae writes beside latents."""
    return name.startswith(".") or _is_own(name)


def _is_never_a_latent(name: str) -> bool:
    return name.startswith(NEVER_LATENTS) or _is_own(name)


def _is_own(name: str) -> bool:
    return name in OWN_FILES or any(is_shared_file(name, own) for own in SHARED_FILES)


def _is_folder(item: os.DirEntry[str]) -> bool:
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

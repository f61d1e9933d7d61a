"""Sources: the inputs below files and folders, their keys, and the outputs they lead to."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from stae_cli.errors import StaeError, UsageError

OWN_FILES = frozenset({"stae.json", "failures.jsonl"})  # beside latents, and no one's input


@dataclass(frozen=True)
class Entry:
    """One input: its key (a path with `/`, relative to its SOURCE) and where it lies."""

    key: str
    path: Path


@dataclass(frozen=True)
class Problem:
    """An input that cannot be used, and why."""

    key: str
    reason: str


@dataclass
class Listing:
    """What the sources hold: entries in a stable order, and what was left aside."""

    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    passed_over: int = 0


@dataclass(frozen=True)
class Planned:
    """An entry and the output, relative to DEST, that it leads to."""

    entry: Entry
    output: str


def list_sources(sources: Sequence[Path], dest: Path | None, *, suffixes: Iterable[str]) -> Listing:
    """Lists every input below the sources.

    Folders are read recursively and in name order; hidden files are passed over, links are
    followed, each real folder is read once per SOURCE. A file given as SOURCE is always taken.

    Args:
        sources: files or folders.
        dest: where results will go, if anywhere; it must not lie inside a source folder.
        suffixes: lowercase suffixes, with the dot, of the files to take from folders.

    Raises:
        UsageError: a source does not exist, or DEST lies inside one.
        StaeError: nothing was found.
    """
    listing, wanted = Listing(), frozenset(suffixes)
    for source in sources:
        _check_source(source, dest)
    for source in sources:
        if source.is_dir():
            _walk(source, wanted, listing)
        else:
            listing.entries.append(Entry(source.name, source))
    if not listing.entries and not listing.problems:
        where = ", ".join(f"`{source}`" for source in sources)
        passed = f" ({listing.passed_over} other files)" if listing.passed_over else ""
        raise StaeError(
            f"no inputs found in {where}{passed}",
            f"files with these suffixes are read: {', '.join(sorted(wanted))}",
        )
    return listing


def plan_outputs(
    entries: Sequence[Entry], suffix: str, *, strip: str | None = None, keep_extension: bool = False
) -> list[Planned]:
    """Names each entry's output, and refuses two that would be the same file.

    Args:
        entries: the inputs.
        suffix: of the outputs, with its dot.
        strip: the only suffix to drop from keys; by default the last one, whatever it is.
        keep_extension: drop nothing, so that `cat.jpg` and `cat.png` can live side by side.

    Raises:
        UsageError: two entries lead to one output (also where only case or Unicode form differ).
    """
    planned = [Planned(e, _stem(e.key, strip, keep_extension) + suffix) for e in entries]
    first: dict[str, Planned] = {}
    for plan in planned:
        other = first.setdefault(_folded(plan.output), plan)
        if other is not plan:
            raise UsageError(
                f"`{other.entry.path}` and `{plan.entry.path}` would both write `{plan.output}`",
                _collision_hint(other, plan, keep_extension),
            )
    return planned


def _check_source(source: Path, dest: Path | None) -> None:
    if not os.path.lexists(source):
        raise UsageError(f"no such file or folder: `{source}`", "check the SOURCE path")
    if dest and source.is_dir() and dest.resolve().is_relative_to(source.resolve()):
        raise UsageError(
            f"DEST `{dest}` lies inside SOURCE `{source}`", "choose a DEST outside of it"
        )


def _walk(source: Path, wanted: frozenset[str], listing: Listing) -> None:
    seen: set[str] = set()
    stack = [("", source)]
    while stack:
        prefix, folder = stack.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as found:
                items = sorted(found, key=lambda item: item.name)
        except OSError as error:
            listing.problems.append(Problem(prefix or str(source), _reason(error)))
            continue
        subfolders = _sort_items(items, prefix, wanted, listing)
        stack.extend(reversed(subfolders))  # popped in name order


def _sort_items(
    items: Sequence[os.DirEntry[str]], prefix: str, wanted: frozenset[str], listing: Listing
) -> list[tuple[str, Path]]:
    """Files to the listing; returns the subfolders with the prefixes of their keys."""
    subfolders = []
    for item in items:
        if item.name.startswith(".") or item.name in OWN_FILES:
            continue
        if _is_folder(item):
            subfolders.append((f"{prefix}{item.name}/", Path(item.path)))
        elif PurePosixPath(item.name).suffix.lower() in wanted and not _is_special(item):
            listing.entries.append(Entry(prefix + item.name, Path(item.path)))
        else:
            listing.passed_over += 1
    return subfolders


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link to itself: tried as a file, so that it is listed
        return False


def _is_special(item: os.DirEntry[str]) -> bool:
    """A pipe, socket or device, which must not be opened."""
    try:
        return not stat.S_ISREG(item.stat().st_mode)
    except OSError:  # a broken link: tried as a file, so that it is listed
        return False


def _reason(error: OSError) -> str:
    return f"cannot read the folder: {error.strerror or error}"


def _stem(key: str, strip: str | None, keep_extension: bool) -> str:
    if strip is not None:
        return key[: -len(strip)] if key.lower().endswith(strip) else key
    return key if keep_extension else str(PurePosixPath(key).with_suffix(""))


def _folded(output: str) -> str:
    return unicodedata.normalize("NFC", output).casefold()


def _collision_hint(first: Planned, second: Planned, keep_extension: bool) -> str:
    if first.entry.key != second.entry.key and not keep_extension:
        return "`--keep-extension` names outputs like `cat.jpg.safetensors`"
    return "encode them into different DESTs, or give the folder above both as the one SOURCE"

"""Sources: the inputs in files, folders, URLs and lists, their keys, and what is passed over."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from stae_cli.errors import StaeError, UsageError
from stae_cli.storage import archives
from stae_cli.storage.archives import Archive, archive_of, with_column, without_pictures
from stae_cli.storage.entry import Entry, FileEntry, Problem
from stae_cli.storage.folders import is_folder, is_hidden, is_never_a_latent, list_folder
from stae_cli.storage.fsspec_store import is_url
from stae_cli.storage.lists import SourceList
from stae_cli.storage.names import summary_of
from stae_cli.storage.noted import Table, read_tables
from stae_cli.storage.notes import NOTHING, Notes, class_labels
from stae_cli.storage.parquet import SUFFIX, ParquetFile
from stae_cli.storage.remote_entry import RemoteEntry, list_objects

_log = logging.getLogger(__name__)

REPEATED = "given twice"
OTHERS = "others"
MOST_KINDS = 1000  # suffixes may be hashes or numbers

# A text is the kind of a file that is passed over.
Found = FileEntry | RemoteEntry | Table | Problem | str


@dataclass
class Listing:
    """What the sources hold, in a stable order, and how many files of each kind do not count.

    `passed_over` is by lowercase suffix, with the dot, or by what else a file is.
    """

    entries: list[Entry] = field(default_factory=list)
    tars: list[Archive] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)

    def pass_over(self, kind: str) -> None:
        """Counts a file that is not an input."""
        known = kind in self.passed_over or len(self.passed_over) < MOST_KINDS
        self.passed_over[kind if known else OTHERS] += 1


def list_sources(
    sources: Sequence[Path | str],
    dest: Path | str | None,
    *,
    suffixes: Iterable[str],
    with_tars: bool = False,
    image_column: str = "",
    listed: SourceList | None = None,
    hidden: bool = False,
    remedies: Mapping[str, str] | None = None,
    notes: bool = False,
    class_folders: bool = False,
) -> Listing:
    """Lists every input below the sources.

    Folders are read recursively in name order. Hidden files are skipped, links are followed, and
    each real folder is read once per SOURCE, by its own path if that is in SOURCE, or else by the
    first link to it. A file given as SOURCE is always taken; one that is given twice with the same
    key is taken once.

    Args:
        sources: files, folders or URLs.
        dest: where results will go, if anywhere; it must not be inside a source folder.
        suffixes: lowercase suffixes, with the dot, of the files to take from folders.
        with_tars: whether to take tars and Parquet files too.
        image_column: of Parquet files, by default the only one that there is.
        listed: more files, which are always taken.
        hidden: whether to take hidden files too; latents are named after their pictures.
        remedies: by suffix, what a user must do so that files with it can be read.
        notes: whether to find captions and labels too.
        class_folders: whether the top-level folders are classes, whose numbers are labels.

    Raises:
        UsageError: a source does not exist, or DEST is inside one; or a picture is in no class.
        StaeError: nothing was found, or a store cannot be reached.
    """
    wanted = frozenset(suffixes) | (set(archives.READ) if with_tars else set())
    for source in sources:
        if not is_url(source):
            _check_source(Path(source), dest)
    listing = list_below(sources, wanted, dest=dest, hidden=hidden, notes=notes)
    given = {str(source).rstrip("/") for source in sources}
    for found in listed.entries() if listed else ():
        _add(found, wanted, listing)
        given.add(found.place if isinstance(found, Entry) else "")
    if any(isinstance(archive, ParquetFile) for archive in listing.tars):
        _settle_columns(listing, given, image_column)
    if class_folders:
        _refuse_other_than_a_folder(sources, listed, listing)
    if listing.tables or class_folders:
        _annotate(listing, Path(sources[0]) if class_folders else None)
    if listed or len(sources) > 1:
        _drop_repeated(listing)
    if not (listing.entries or listing.tars or listing.problems):
        where = ", ".join(f"`{source}`" for source in sources) or "the list"
        passed = f", only {summary_of(listing.passed_over)}" if listing.passed_over else ""
        hints = [remedy for kind, remedy in (remedies or {}).items() if kind in listing.passed_over]
        hints.append(f"files with these suffixes are read: {', '.join(sorted(wanted))}")
        raise StaeError(f"no inputs found in {where}{passed}", "; ".join(hints))
    return listing


def list_below(
    sources: Sequence[Path | str],
    wanted: frozenset[str],
    *,
    dest: Path | str | None = None,
    hidden: bool = False,
    notes: bool = False,
) -> Listing:
    """Like `list_sources`, of sources that exist; the result may be empty."""
    listing = Listing()
    found: Iterator[Found]
    is_skipped = is_never_a_latent if hidden else is_hidden
    for source in sources:
        if isinstance(source, str) and is_url(source):
            found = list_objects(source, dest, suffixes=wanted, is_skipped=is_skipped, notes=notes)
        elif (path := Path(source)).is_dir():
            found = list_folder(path, wanted, is_skipped, notes=notes)
        else:
            found = iter([FileEntry(path.name, str(path), sidecars=None)])
        for item in found:
            _add(item, wanted, listing)
    return listing


def _check_source(source: Path, dest: Path | str | None) -> None:
    if not os.path.lexists(source):
        raise UsageError(f"no such file or folder: `{source}`", "check the path")
    if not os.path.exists(source) and source.is_symlink():  # noqa: PTH110 (raises nothing)
        raise UsageError(f"`{source}` is a link that leads nowhere", "check its target")
    if dest is None or is_url(dest) or not source.is_dir():
        return
    # Path.resolve would raise at a link to itself.
    if Path(os.path.realpath(dest)).is_relative_to(os.path.realpath(source)):
        raise UsageError(
            f"DEST `{dest}` is inside SOURCE `{source}`", "choose a DEST outside of it"
        )


def _add(found: Found, wanted: frozenset[str], listing: Listing) -> None:
    if isinstance(found, str):
        listing.pass_over(found)
    elif isinstance(found, Problem):
        listing.problems.append(found)
    elif isinstance(found, Table):
        listing.tables.append(found)
    elif archives.READ[0] in wanted and found.key.lower().endswith(archives.SUFFIXES):
        listing.tars.append(archive_of(found))
    else:
        listing.entries.append(found)


def _settle_columns(listing: Listing, given: Collection[str], image_column: str) -> None:
    """Chooses the column of Parquet files; those in folders may be without pictures."""
    listing.tars = [with_column(archive, image_column) for archive in listing.tars]
    lacking = without_pictures(listing.tars, column=image_column).difference(given)
    for _ in lacking:
        listing.pass_over(SUFFIX)
    listing.tars = [archive for archive in listing.tars if archive.entry.place not in lacking]


def _refuse_other_than_a_folder(
    sources: Sequence[Path | str], listed: SourceList | None, listing: Listing
) -> None:
    """Refuses sources whose top-level folders are not classes: their order gives the numbers."""
    url = any(is_url(source) for source in sources)
    if listed or len(sources) != 1 or url or listing.tars or not Path(sources[0]).is_dir():
        raise UsageError(
            "`--class-folders` numbers the folders in one local folder of images",
            "give that folder as the one SOURCE, without tars and Parquet files",
        )


def _annotate(listing: Listing, classes: Path | None) -> None:
    """Adds what tables and the folder of `classes` say to the entries."""
    said, numbers = read_tables(listing.tables), {}
    if classes is not None:
        found = (item.name for item in os.scandir(classes) if is_folder(item))
        folders = (name for name in found if not is_hidden(name))
        numbers = class_labels((entry.key for entry in listing.entries), folders)
    for index, entry in enumerate(listing.entries):
        notes = said.get(entry.key, NOTHING)
        if numbers:
            notes = notes.over(Notes(label=numbers[entry.key.partition("/")[0]]))
        if notes != NOTHING and isinstance(entry, FileEntry | RemoteEntry):
            listing.entries[index] = replace(entry, said=notes)


def _drop_repeated(listing: Listing) -> None:
    """Keeps the first of the inputs that are the same file with the same key."""
    first: dict[str, Entry] = {}

    def is_new(entry: Entry) -> bool:
        other = first.setdefault(entry.key, entry)
        if other is entry or not _is_same(other, entry):
            return True
        _log.info("`%s` is given twice", entry.place)
        listing.pass_over(REPEATED)
        return False

    listing.entries = [entry for entry in listing.entries if is_new(entry)]
    listing.tars = [tar for tar in listing.tars if is_new(tar.entry)]


def _is_same(one: Entry, other: Entry) -> bool:
    """Whether two entries with one key are the same file."""
    if one.place == other.place or not isinstance(one, FileEntry):
        return one.place == other.place
    return os.path.realpath(one.place) == os.path.realpath(other.place)

"""The index of stored latents that a dataset reads: compact, and refused if anything is wrong."""

from __future__ import annotations

import os
import re
import warnings
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from stae_cli.errors import InputError, StaeError
from stae_cli.latents.exchanged import Exchanged
from stae_cli.latents.format import SUFFIX, StoredLatent
from stae_cli.latents.listing import stored_in
from stae_cli.latents.manifest import ManifestLine, read_manifests
from stae_cli.latents.orphans import read_orphans
from stae_cli.storage.destination import FolderDestination
from stae_cli.storage.entry import Entry, Problem, SourceState
from stae_cli.storage.sources import list_sources

PROBLEMS_NAMED = 5
NO_CHECKSUM = -1  # what an early version wrote
NO_FLIP = -2
KEEP: Literal["surrogateescape"] = "surrogateescape"  # file names that are not UTF-8


@dataclass(frozen=True)
class Location:
    """The numbers of a stored latent that a dataset needs, a row of `LatentIndex`.

    `file` is an index into its files; `rows` and `columns` are latent positions; sizes are the
    picture's, in pixels, those with `original_` before it was resized. `crc32` is the checksum of
    the data, `flip_crc32` that of the flip, which follows, or NO_FLIP; `label` is -1 if there is
    none.
    """

    file: int
    begin: int  # byte of the file
    itemsize: int
    channels: int
    rows: int
    columns: int
    width: int
    height: int
    original_width: int
    original_height: int
    crc32: int
    flip_crc32: int
    label: int

    @property
    def has_flip(self) -> bool:
        """Whether the latent of the mirrored picture is there too."""
        return self.flip_crc32 != NO_FLIP


NAMES = [field.name for field in fields(Location)]
COLUMNS = len(NAMES)


class Texts:
    """Strings behind each other in one piece of memory, which forks share."""

    def __init__(self) -> None:
        self._text, self._ends = bytearray(), array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> str:
        return self._text[self._ends[number] : self._ends[number + 1]].decode(errors=KEEP)

    def append(self, text: str) -> None:
        """Adds a string, which need not be valid Unicode."""
        self._text += text.encode(errors=KEEP)
        self._ends.append(len(self._text))


@dataclass
class LatentIndex:
    """All latents of some sources, in about 120 bytes, the key and the caption for each.

    A `StoredLatent` takes seven times as much, and each worker of a `DataLoader` has a copy.
    `too_small` counts those left out.
    """

    weights: str = ""
    weights_sha256: str = ""
    too_small: int = 0
    files: list[tuple[Entry, SourceState]] = field(default_factory=list)
    first: str = ""  # the file of the first latent
    without_flip: str = ""  # the first latent that has none
    _rows: array[int] = field(default_factory=lambda: array("q"))
    _keys: Texts = field(default_factory=lambda: Texts())
    _captions: Texts = field(default_factory=lambda: Texts())

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, number: int) -> str:
        """The key of a latent."""
        return self._keys[number]

    def caption(self, number: int) -> str:
        """The caption of a latent's picture; empty without one."""
        return self._captions[number]

    def location(self, number: int) -> Location:
        """The location of a latent."""
        return Location(*self._rows[number * COLUMNS : (number + 1) * COLUMNS])

    @property
    def table(self) -> npt.NDArray[np.int64]:
        """All locations, a row for each, with the fields of `Location` as columns."""
        return np.frombuffer(self._rows, np.int64).reshape(-1, COLUMNS)

    def column(self, name: str) -> npt.NDArray[np.int64]:
        """One field of all locations."""
        found: npt.NDArray[np.int64] = self.table[:, NAMES.index(name)]
        return found

    def add(self, stored: StoredLatent) -> None:
        """Adds a latent of the last of `files`."""
        info, itemsize = stored.info, np.dtype(stored.dtype).itemsize
        place = (len(self.files) - 1, stored.begin, itemsize, *stored.shape)
        flip = _parsed(info.flip_crc32) if stored.has_flip else NO_FLIP
        if not stored.has_flip:
            self.without_flip = self.without_flip or stored.label
        sizes = info.width, info.height, info.original_width, info.original_height
        self._rows.extend((*place, *sizes, _parsed(info.data_crc32), flip, info.label))
        self._keys.append(stored.key)
        self._captions.append(info.caption)


def _parsed(crc32: str) -> int:
    """A checksum as a number; one that no data have if it is not valid."""
    if not crc32:
        return NO_CHECKSUM
    return int(crc32, 16) if re.fullmatch("[0-9a-f]{8}", crc32) else 1 << 32


def index_latents(
    sources: Sequence[Path], *, smallest: tuple[int, int] | None = None
) -> LatentIndex:
    """Reads the headers of all latent files and shards below the sources.

    Args:
        sources: latent files, or folders of them, in either layout.
        smallest: rows and columns; smaller latents are left out, and counted.

    Raises what `LatentDataset` raises for its sources.
    """
    listing = list_sources(sources, None, suffixes=[SUFFIX], hidden=True)
    index, problems = LatentIndex(), list(listing.problems)
    _refuse_twice(sources, listing.entries)
    owners: dict[str, str] = {}
    exchanged: Exchanged[Entry] = Exchanged()
    for entry in listing.entries:
        try:
            found = stored_in(entry)
        except InputError as error:
            problems.append(Problem(entry.place, error.message))
            continue
        index.files.append((entry, found[0].state))
        for stored in found:
            _check_key(stored, owners)
            _check_weights(stored, index)
            exchanged.add(entry, stored.key, stored.info.source)
            if smallest and (stored.shape[1] < smallest[0] or stored.shape[2] < smallest[1]):
                index.too_small += 1
            else:
                index.add(stored)
    problems += [Problem(entry.place, reason) for entry, reason in exchanged.found()]
    _refuse(problems)
    _refuse_missing(sources, listing.entries)
    _warn_of_orphans(sources)
    return index


def _warn_of_orphans(sources: Sequence[Path]) -> None:
    for source in sources:
        folder = FolderDestination(source)
        orphans = read_orphans(folder) if source.is_dir() else []
        if orphans:
            warnings.warn(
                f"`{source}` holds latents whose sources are gone: {len(orphans)}, such as "
                f"`{orphans[0].label}`; `stae encode --prune` removes them",
                stacklevel=2,
            )


def _refuse_missing(sources: Sequence[Path], entries: Sequence[Entry]) -> None:
    """Refuses a folder whose manifest names a shard that is not there."""
    places = {os.path.normpath(entry.place) for entry in entries}
    for source in sources:
        folder = FolderDestination(source)
        lines = read_manifests(folder) if source.is_dir() else iter(())
        shards = dict.fromkeys(line.shard for line in lines if isinstance(line, ManifestLine))
        missing = [name for name in shards if os.path.normpath(folder.place(name)) not in places]
        if missing:
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise StaeError(
                f"`{source}` has lost `{missing[0]}`{more}, which its manifest names",
                "restore it, or run the same `stae encode` again",
            )


def _refuse_twice(sources: Sequence[Path], entries: Sequence[Entry]) -> None:
    """Refuses a file that is below two sources, by whatever path."""
    given = {str(source) for source in sources if source.is_file()}
    folders: dict[str, str] = {}
    seen: dict[str, str] = {}
    for entry in entries:
        folder, name = os.path.split(entry.place)
        if folder not in folders:
            folders[folder] = Path(os.path.realpath(folder)).as_posix()
        real = f"{folders[folder]}/{name}"
        if entry.place in given:
            real = Path(os.path.realpath(entry.place)).as_posix()
        other = seen.setdefault(real, entry.place)
        if other is not entry.place:
            also = "" if other == entry.place else f", also as `{other}`"
            raise StaeError(
                f"`{entry.place}` is listed twice{also}: sources overlap",
                "give each folder once, and no file or folder inside another one",
            )


def _check_key(stored: StoredLatent, owners: dict[str, str]) -> None:
    other = owners.setdefault(stored.key, stored.file.place)
    if other != stored.file.place:
        raise StaeError(
            f"`{stored.key}` is stored twice: in `{other}` and `{stored.file.place}`",
            "remove one, or read folders that share keys separately",
        )


def _check_weights(stored: StoredLatent, index: LatentIndex) -> None:
    info = stored.info
    if not index.weights_sha256:
        index.weights, index.weights_sha256 = info.weights, info.weights_sha256
        index.first = stored.file.place
    if info.weights_sha256 != index.weights_sha256:
        raise StaeError(
            f"`{stored.file.place}` holds latents of `{info.weights}` "
            f"({info.weights_sha256[:12]}), `{index.first}` of `{index.weights}` "
            f"({index.weights_sha256[:12]})",
            "latents of different checkpoints cannot be mixed: read them separately",
        )


def _refuse(problems: Sequence[Problem]) -> None:
    if not problems:
        return
    named = "; ".join(f"`{p.key}`: {p.reason}" for p in problems[:PROBLEMS_NAMED])
    more = f" (and {len(problems) - PROBLEMS_NAMED} more)" if problems[PROBLEMS_NAMED:] else ""
    raise StaeError(
        f"{len(problems)} files are not valid latents: {named}{more}",
        "run the same `stae encode` again to replace damaged latents; move other files away",
    )

"""Mapped latents: a compact index of stored latents, and memory maps of their data."""

from __future__ import annotations

import warnings
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from stae_cli.errors import InputError, StaeError
from stae_cli.latents.format import SUFFIX, Latent, StoredLatent
from stae_cli.latents.listing import stored_in
from stae_cli.latents.orphans import read_orphans
from stae_cli.storage.destination import FolderDestination
from stae_cli.storage.entry import Entry, Problem, SourceState
from stae_cli.storage.sources import list_sources

OPEN_MAPS = 64  # per process; systems allow about 65,000
PROBLEMS_NAMED = 5
KEEP: Literal["surrogateescape"] = "surrogateescape"  # file names that are not UTF-8

Map = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Location:
    """The numbers of a stored latent that a dataset needs, a row of `LatentIndex`.

    `file` is an index into its files; `rows` and `columns` are latent positions; `width` and
    `height` are the picture's, in pixels.
    """

    file: int
    begin: int  # byte of the file
    itemsize: int
    channels: int
    rows: int
    columns: int
    width: int
    height: int


COLUMNS = len(fields(Location))


@dataclass
class LatentIndex:
    """All latents of some sources, in about 100 bytes and the key for each.

    A `StoredLatent` takes seven times as much, and each worker of a `DataLoader` has a copy.
    `too_small` counts those left out.
    """

    weights: str = ""
    weights_sha256: str = ""
    too_small: int = 0
    files: list[tuple[Entry, SourceState]] = field(default_factory=list)
    first: str = ""  # the file of the first latent
    _rows: array[int] = field(default_factory=lambda: array("q"))
    _keys: bytearray = field(default_factory=bytearray)
    _ends: array[int] = field(default_factory=lambda: array("q", [0]))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def key(self, number: int) -> str:
        """The key of a latent."""
        return self._keys[self._ends[number] : self._ends[number + 1]].decode(errors=KEEP)

    def location(self, number: int) -> Location:
        """The location of a latent."""
        return Location(*self._rows[number * COLUMNS : (number + 1) * COLUMNS])

    def add(self, stored: StoredLatent) -> None:
        """Adds a latent of the last of `files`."""
        info, itemsize = stored.info, np.dtype(stored.dtype).itemsize
        place = (len(self.files) - 1, stored.begin, itemsize, *stored.shape)
        self._rows.extend((*place, info.width, info.height))
        self._keys += stored.key.encode(errors=KEEP)
        self._ends.append(len(self._keys))


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
    owners: dict[str, str] = {}
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
            if smallest and (stored.shape[1] < smallest[0] or stored.shape[2] < smallest[1]):
                index.too_small += 1
            else:
                index.add(stored)
    _refuse(problems)
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


class LatentMaps:
    """The files of an index, memory-mapped when they are needed.

    Each process keeps at most `OPEN_MAPS` of them; pickling drops them. A file that was replaced
    since its header was read is noticed when it is next mapped. Truncating a mapped file in place
    kills the process, as with any memory map; stae never does that.
    """

    def __init__(self, files: Sequence[tuple[Entry, SourceState]]) -> None:
        self._files = files
        self._maps: OrderedDict[int, Map] = OrderedDict()

    def latent(self, where: Location) -> Latent:
        """A latent (C, h, w) in its file: a read-only view, read from disk where it is used.

        Raises:
            StaeError: the file is absent, has changed, or cannot be read.
        """
        shape = (where.channels, where.rows, where.columns)
        end = where.begin + where.channels * where.rows * where.columns * where.itemsize
        data = self._mapped(where.file)[where.begin : end]
        return data.view(f"<f{where.itemsize}").reshape(shape)

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": self._files, "_maps": OrderedDict()}

    def _mapped(self, file: int) -> Map:
        found = self._maps.pop(file, None)
        if found is None:
            found = _map(*self._files[file])
        self._maps[file] = found  # last: the most recently used
        while len(self._maps) > OPEN_MAPS:
            self._maps.popitem(last=False)
        return found


def _map(entry: Entry, state: SourceState) -> Map:
    try:
        if entry.state() != state:
            raise StaeError(f"`{entry.place}` has changed since it was listed", "start again")
        return np.memmap(entry.place, np.uint8, "r")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StaeError(f"cannot read `{entry.place}`: {reason}", "start again") from error

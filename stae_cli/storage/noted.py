"""Which files of a source say something of its pictures: sidecars and tables, found by name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from stae_cli.errors import InputError, UsageError
from stae_cli.storage.entry import Entry
from stae_cli.storage.names import suffix_of
from stae_cli.storage.notes import (
    DATASET,
    METADATA,
    NOTHING,
    SIDECARS,
    Notes,
    read_table,
    stem_of,
)


@dataclass(frozen=True)
class Beside:
    """The sidecars of a folder's pictures, by the pictures' stems."""

    by_stem: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Iterable[str], pictures: Collection[str]) -> Beside:
        """Those among some names; `pictures` are the suffixes of pictures."""
        sidecars: dict[str, set[str]] = {}
        stems = set()
        for name in names:
            if name.endswith(SIDECARS):
                stem = stem_of(name)
                sidecars.setdefault(stem, set()).add(name[len(stem) :])
            elif suffix_of(name) in pictures:
                stems.add(stem_of(name))
        return cls(
            {
                stem: tuple(suffix for suffix in SIDECARS if suffix in found)
                for stem, found in sidecars.items()
                if stem in stems
            }
        )

    def sidecars(self, name: str) -> tuple[str, ...]:
        """The suffixes of the files beside a picture."""
        return self.by_stem.get(stem_of(name), ()) if self.by_stem else ()

    def has(self, name: str) -> bool:
        """Whether a file is a sidecar."""
        return name.endswith(SIDECARS) and bool(self.sidecars(name))


@dataclass(frozen=True)
class Table:
    """A file that says something of many pictures; `key` is its path below the source."""

    entry: Entry
    key: str

    def read(self) -> dict[str, Notes]:
        """The notes of each picture, by its key.

        Raises:
            UsageError: it is damaged, or cannot be read.
        """
        folder, slash, _ = self.key.rpartition("/")
        place, found = self.entry.place, dict[str, Notes]()
        try:
            with self.entry.open() as file:
                for key, notes in read_table(file, place=place, prefix=folder + slash):
                    found[key] = notes.over(found.get(key, NOTHING))
        except (OSError, InputError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(
                f"cannot read `{place}`: {reason}", "fix it, or encode with `--no-captions`"
            ) from error
        return found


def is_table(key: str) -> bool:
    """Whether a file of this path below a source is a table."""
    return key == DATASET or key.rpartition("/")[2] == METADATA


def read_tables(tables: Sequence[Table]) -> dict[str, Notes]:
    """What all of them say of each picture; of two that contradict each other the first counts."""
    found: dict[str, Notes] = {}
    for table in tables:
        for key, notes in table.read().items():
            found[key] = found.get(key, NOTHING).over(notes)
    return found

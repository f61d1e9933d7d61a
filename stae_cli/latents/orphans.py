"""Orphans: latents whose sources are gone. A run names them, and `--prune` removes them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

from stae_cli.errors import InputError, StaeError
from stae_cli.latents.format import latent_bytes
from stae_cli.latents.listing import stored_in
from stae_cli.latents.shard_format import write_shard
from stae_cli.storage.destination import Destination
from stae_cli.storage.entry import Problem
from stae_cli.storage.shares import Share, shared_lines

NAME = "orphans"
FILE = Share().file_name(NAME)
GAPS = "pruned.json"


@dataclass(frozen=True)
class Orphan:
    """A latent without a source: its key, its file in DEST, its source, and that one's root."""

    key: str
    file: str
    source: str
    root: str

    @property
    def label(self) -> str:
        """Its name in messages: its file, and its key in a shard."""
        return self.file if self.file.startswith(f"{self.key}.") else f"{self.file}:{self.key}"


def read_orphans(destination: Destination) -> list[Orphan]:
    """The orphans that the last runs listed."""
    names = ("key", "file", "source", "root")
    lines = shared_lines(destination, NAME, lambda _, row: Orphan(*(str(row[n]) for n in names)))
    return [line for line in lines if not isinstance(line, Problem)]


def write_orphans(
    destination: Destination, orphans: Sequence[Orphan], *, roots: Collection[str]
) -> None:
    """Lists a run's orphans in DEST; those of other roots stay listed while their files exist."""
    before = read_orphans(destination) if destination.holds(FILE) else []
    others = [o for o in before if o.root not in roots and destination.holds(o.file)]
    listed = [*others, *orphans]
    if listed == before:
        return
    if not listed:
        destination.remove(FILE)
        return
    with destination.writing(FILE) as path:
        lines = (json.dumps(asdict(orphan)) + "\n" for orphan in listed)
        path.write_text("".join(lines), encoding="utf-8")


def read_gaps(destination: Destination) -> Counter[int]:
    """How many latents were pruned from each shard, by its number.

    Such a shard stays smaller than the others: if later pictures moved up, all later shards would
    have to be written again.

    Raises:
        StaeError: DEST cannot be read, or the file is damaged.
    """
    try:
        with destination.entry(GAPS).open() as file:
            values = json.loads(file.read())
        return Counter({int(number): int(count) for number, count in values.items()})
    except (FileNotFoundError, NotADirectoryError):
        return Counter()
    except OSError as error:
        reason = error.strerror or error
        raise StaeError(f"cannot read `{destination.place(GAPS)}`: {reason}") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise StaeError(
            f"`{destination.place(GAPS)}` is damaged, which says how large each shard is",
            "encode into another DEST, or restore that file",
        ) from error


def prune(
    destination: Destination,
    orphans: Sequence[Orphan],
    *,
    number_of: Callable[[str], int | None],
) -> None:
    """Removes orphans: files of their own, or from shards, which are written again without them.

    Args:
        destination: DEST.
        orphans: to remove.
        number_of: the number of a shard directly in DEST, by its file's name.

    Raises:
        StaeError: DEST cannot be written to, or holds damaged latents.
    """
    gaps, by_file = read_gaps(destination), defaultdict(set)
    for orphan in orphans:
        by_file[orphan.file].add(orphan.key)
    counts = {number_of(file): len(keys) for file, keys in by_file.items()}
    added = {number: count for number, count in counts.items() if number is not None}
    if added:  # before the shards: a run that is killed finds the orphans again
        _write_gaps(destination, gaps + Counter(added))
    for file, keys in by_file.items():
        _without(destination, file, keys)


def _write_gaps(destination: Destination, gaps: Mapping[int, int]) -> None:
    with destination.writing(GAPS) as path:
        values = {str(number): gaps[number] for number in sorted(gaps)}
        path.write_text(json.dumps(values) + "\n", encoding="utf-8")


def _without(destination: Destination, name: str, keys: Collection[str]) -> None:
    try:
        latents = stored_in(destination.entry(name))
        kept = [latent for latent in latents if latent.key not in keys]
        if not kept:
            destination.remove(name)
            return
        with destination.writing(name) as path:
            data = (b"".join(map(latent_bytes, latent.read_both())) for latent in kept)
            write_shard(path, kept, data)
    except InputError as error:
        raise StaeError(
            f"`{destination.place(name)}`: {error.message}",
            "run the same `stae encode` with `--check` first",
        ) from error

"""What DEST holds before a run: latents of its sources, of others, and of sources that are gone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TypeVar

from stae_cli.errors import InputError, StaeError
from stae_cli.flow.read_ahead import scanning
from stae_cli.latents.format import SUFFIX, StoredLatent
from stae_cli.latents.listing import stored_in
from stae_cli.latents.orphans import Orphan
from stae_cli.latents.writer import has_content, is_elsewhere
from stae_cli.runs.units import is_shard, shard_number
from stae_cli.storage.archives import SUFFIXES
from stae_cli.storage.destination import Destination
from stae_cli.storage.entry import Entry, FileEntry, root_id
from stae_cli.storage.names import Planned
from stae_cli.storage.remote_entry import RemoteEntry, RemoteOutput
from stae_cli.storage.sources import Listing

Item = TypeVar("Item")

SAMPLE = 64  # latents whose sources' contents are compared


@dataclass(frozen=True)
class Present:
    """What DEST holds: latents without a source, and whether the sources are `moved` ones."""

    orphans: Sequence[Orphan] = ()
    moved: bool = False

    def in_shards(self) -> dict[int, frozenset[str]]:
        """The keys of the orphans in each shard directly in DEST, by its number."""
        keys: defaultdict[int, set[str]] = defaultdict(set)
        for orphan in self.orphans:
            if (number := shard_number(orphan.file)) is not None:
                keys[number].add(orphan.key)
        return {number: frozenset(inside) for number, inside in keys.items()}


@dataclass
class _Found:
    """Latents with a source in the run, and what is to be known of those without."""

    planned: list[tuple[Planned, StoredLatent]] = field(default_factory=list)
    strays: list[Orphan] = field(default_factory=list)


def look_into(
    destination: Destination,
    listing: Listing,
    outputs: Sequence[Planned],
    *,
    shards: bool,
    overwrite: bool,
    workers: int | None,
) -> Present:
    """Looks at what DEST holds; reads headers, and the contents of a few sources.

    If latents were made from sources in another place, the contents of a sample decide: if at
    least half of them are the same, the sources were moved, and those that changed since are
    encoded again.

    Args:
        destination: DEST, prepared.
        listing: of the sources.
        outputs: of the listed files.
        shards: whether latents are in shards.
        overwrite: whether all of them are written again, whatever they were made from; shards then
            hold nothing else.
        workers: reading threads.

    Raises:
        StaeError: the latents of other sources have the names of this run's.
    """
    if overwrite and shards:
        return Present()
    by_output = {planned.output: planned for planned in outputs}
    below = tuple(f"{tar.prefix}/" for tar in listing.tars)
    names = (name for name in destination.names() if name.endswith(SUFFIX))
    others = [name for name in names if not name.startswith(below)]
    find = _in_shards if shards else _in_files
    found = find(destination, others, by_output, workers)
    roots = _roots(listing)
    before = frozenset() if overwrite else _roots_before(destination, found.planned)
    known = bool(found.planned)
    orphans = [each for each in found.strays if _is_orphan(each, roots, before, known=known)]
    return Present(orphans, moved=bool(before))


def _in_files(
    destination: Destination,
    names: Sequence[str],
    by_output: Mapping[str, Planned],
    workers: int | None,
) -> _Found:
    found = _Found()
    common = _spread([name for name in names if name in by_output])
    unplanned = [name for name in names if name not in by_output]
    for latents in _read(destination, [*common, *unplanned], workers):
        for latent in latents if len(latents) == 1 else ():
            planned = by_output.get(latent.file.key)
            if planned is None:
                found.strays.append(_stray(latent))
            else:
                found.planned.append((planned, latent))
    return found


def _in_shards(
    destination: Destination,
    names: Sequence[str],
    by_output: Mapping[str, Planned],
    workers: int | None,
) -> _Found:
    found, shards = _Found(), [name for name in names if is_shard(name)]
    each = -(-SAMPLE // max(1, len(shards)))
    for latents in _read(destination, shards, workers):
        planned = [latent for latent in latents if latent.key in by_output]
        found.planned += ((by_output[latent.key], latent) for latent in _spread(planned, each))
        found.strays += (_stray(latent) for latent in latents if latent.key not in by_output)
    found.planned = _spread(found.planned)
    return found


def _read(
    destination: Destination, names: Iterable[str], workers: int | None
) -> Iterator[Sequence[StoredLatent]]:
    """The latents of each file; of damaged and foreign ones, none: the run finds them itself."""

    def read(name: str, _reserve: object) -> Sequence[StoredLatent]:
        try:
            return stored_in(destination.entry(name))
        except InputError:
            return ()

    with scanning(names, read, workers=workers) as files:
        yield from files


def _spread(items: Sequence[Item], count: int = SAMPLE) -> list[Item]:
    """At most `count` of them, evenly spread."""
    return list(items[:: -(-len(items) // count) or 1])


def roots_of(listing: Listing) -> frozenset[str]:
    """What identifies the roots of the sources."""
    return frozenset(_roots(listing))


def _roots(listing: Listing) -> dict[str, Entry]:
    """One input of each root of the run."""
    entries = [*listing.entries, *(tar.entry for tar in listing.tars)]
    by_root = {entry.root: entry for entry in entries}
    return {root_id(root): entry for root, entry in by_root.items()}


def _stray(latent: StoredLatent) -> Orphan:
    """A latent of no input of the run: small, since DEST may hold millions of other sources."""
    info = latent.info
    return Orphan(latent.key, latent.file.key, info.source, info.source_root)


def _is_orphan(stray: Orphan, roots: Mapping[str, Entry], before: Set[str], *, known: bool) -> bool:
    """Whether the source of a stray was one of the run's, and is gone.

    Args:
        stray: a latent of no input of the run.
        roots: of the run.
        before: what identifies the roots from which those of the run were moved.
        known: whether DEST holds latents of this run: it shows that a latent of an earlier version,
            which records no root, in a shard, is of these sources.
    """
    if stray.root in before or (not stray.root and known and is_shard(stray.file)):
        places = list(roots.values())
    else:
        places = [roots[stray.root]] if stray.root in roots else []
    return bool(places) and all(_is_gone(place, stray.source) for place in places)


def _is_gone(beside: Entry, key: str) -> bool:
    """Whether there is neither this key in the root of an input, nor a tar that may hold it."""
    parts = key.split("/")
    tars = ("/".join(parts[:count]) + tar for count in range(1, len(parts)) for tar in SUFFIXES)
    return all(_is_absent(beside, each) for each in (key, *tars))


def _is_absent(beside: Entry, key: str) -> bool:
    place: Entry = FileEntry(key, f"{beside.root}/{key}")
    if isinstance(beside, RemoteEntry):
        place = RemoteOutput(key, beside.store)
    try:
        place.state()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, InputError):
        return False
    return False


def _roots_before(
    destination: Destination, sample: Collection[tuple[Planned, StoredLatent]]
) -> frozenset[str]:
    """Where the sources were before they were moved, if they were."""
    elsewhere = [(p, latent) for p, latent in sample if is_elsewhere(latent.info, p.entry)]
    same = [latent.info.source_root for p, latent in elsewhere if _is_source(p, latent)]
    if elsewhere and not same:
        key = elsewhere[0][0].entry.key
        raise StaeError(
            f"`{destination.place()}` holds latents of another source under the names of this "
            f"run's, such as that of `{key}`: their files differ",
            "choose another DEST, or `--overwrite` to replace them",
        )
    return frozenset(same if 2 * len(same) >= len(elsewhere) else ())


def _is_source(planned: Planned, latent: StoredLatent) -> bool:
    try:
        return latent.info.source == planned.entry.key and has_content(
            planned.entry, latent.info.source_xxh3
        )
    except (InputError, OSError):
        return False

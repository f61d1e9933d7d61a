"""Units: the parts of an encode run, each always the same pictures in the same order."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from stae_cli.errors import UsageError
from stae_cli.images.read import IMAGE_SUFFIXES
from stae_cli.latents.format import SUFFIX
from stae_cli.latents.shard_format import TarNote
from stae_cli.latents.writer import Job, Shard
from stae_cli.storage.archives import Archive, pictures
from stae_cli.storage.entry import DamagedArchive, Entry, Problem
from stae_cli.storage.names import (
    EXACT,
    NameRules,
    Planned,
    collision_hint,
    is_too_long,
    output_name,
    plan_outputs,
    problem_of,
)
from stae_cli.storage.sources import Listing

UNIT = 256  # pictures, if each has its own file
SHARD = re.compile(rf"shard-(\d{{5,18}}){re.escape(SUFFIX)}")


@dataclass(frozen=True)
class Layout:
    """How outputs are named: `shard_size` pictures to a shard, or a file for each if it is 0."""

    shard_size: int = 0
    keep_extension: bool = False
    captions: bool = True  # whether they are read, and labels: noted in the shards of a tar

    @property
    def unit_size(self) -> int:
        """Pictures of a unit."""
        return self.shard_size or UNIT

    @property
    def suffix(self) -> str:
        """Of the outputs of single pictures."""
        return "" if self.shard_size else SUFFIX

    def rules(self, rules: NameRules) -> NameRules:
        """Which outputs have the same name, where files follow these rules."""
        return EXACT if self.shard_size else rules

    def output(self, key: str) -> str:
        """The output of a key."""
        return output_name(key, self.suffix, None, self.keep_extension)


class Unit:
    """Pictures that one process encodes: some of those listed, or those of a tar.

    It can be pickled.

    Args:
        count: of the pictures; None if they are not listed yet.
        first_shard: the number of the first shard.
        orphans: latents without a source that stay in that shard.
        folder: of the shards, with a `/` at its end, or empty.
        etag: of the tar, if it has one.
        find: gives the pictures in order, and a problem for each that cannot be used.
    """

    def __init__(
        self,
        layout: Layout,
        find: Callable[[], Iterator[Planned | Problem]],
        *,
        count: int | None = None,
        first_shard: int = 0,
        orphans: frozenset[str] = frozenset(),
        folder: str = "",
        etag: str = "",
    ) -> None:
        self.layout, self.find, self.count = layout, find, count
        self.orphans = orphans
        self.first_shard, self.folder, self.etag = first_shard, folder, etag

    def shard_name(self, number: int) -> str:
        """The name of one of its shards, counted from 0."""
        return shard_name(self.folder, self.first_shard + number)

    def jobs(self, exists: Callable[[str], bool] | None = None) -> Iterator[Job | Problem]:
        """What is to be done, in order.

        Args:
            exists: whether DEST holds a file; with it, surplus shards of a tar are problems too.
        """
        if self.layout.shard_size:
            yield from self._sharded(exists)
            return
        for found in self.find():
            if isinstance(found, Planned) and is_too_long(found.output):
                yield Problem(found.entry.key, "its output's name is too long; rename it")
            else:
                yield found if isinstance(found, Problem) else Job(found)

    def _sharded(self, exists: Callable[[str], bool] | None) -> Iterator[Job | Problem]:
        """Finds all pictures before the first job, so that an unreadable tar changes nothing.

        If a tar can be read in part, nothing is removed: the rest may be damaged or still copied.
        """
        pictures, problems, part = [], 0, False
        for found in self.find():
            part = part or isinstance(found, DamagedArchive)
            reason = None if isinstance(found, Problem) else problem_of(found.output)
            if isinstance(found, Planned) and reason is None:
                pictures.append(found)
                continue
            problems += 1
            yield (
                found
                if isinstance(found, Problem)
                else Problem(found.entry.key, f"{reason}, which a shard cannot hold; rename it")
            )
        note = None
        if self.etag:
            captions = self.layout.captions
            note = TarNote(self.etag, len(pictures), problems, captions=captions)
        size, number = self.layout.shard_size, 0
        for begin in range(0, len(pictures), size):
            name, planned = self.shard_name(number), pictures[begin : begin + size]
            shard = Shard(name, planned, note, part, self.orphans)
            yield from (Job(planned, shard) for planned in shard.planned)
            number += 1
        surplus = self.shard_name(number)
        if self.folder and not part and exists and exists(surplus):
            yield Problem(surplus, "more than its tar needs now; remove it if the tar is sound")


def shard_name(folder: str, number: int) -> str:
    """The file name of a shard, relative to DEST."""
    return f"{folder}shard-{number:05}{SUFFIX}"


def is_shard(name: str) -> bool:
    """Whether a file of DEST is named like a shard."""
    return SHARD.fullmatch(name.rpartition("/")[2]) is not None


def shard_number(name: str) -> int | None:
    """The number of a shard directly in DEST; None for any other file."""
    match = SHARD.fullmatch(name)
    return int(match[1]) if match else None


def name_outputs(listing: Listing, layout: Layout, rules: NameRules = EXACT) -> list[Planned]:
    """The outputs of all listed files.

    Args:
        listing: the inputs.
        layout: of DEST.
        rules: of DEST; the keys in shards are exact anywhere.

    Raises:
        UsageError: two sources lead to one output.
    """
    planned = plan_outputs(
        listing.entries,
        layout.suffix,
        keep_extension=layout.keep_extension,
        rules=layout.rules(rules),
    )
    _refuse_shared_folders(planned, listing.tars, rules)
    return planned


def listed_units(
    planned: Sequence[Planned],
    layout: Layout,
    *,
    gaps: Mapping[int, int],
    orphans: Mapping[int, frozenset[str]],
) -> list[Unit]:
    """The units of pictures that are known one by one.

    Args:
        planned: the pictures.
        layout: of their latents.
        gaps: how many pictures fewer than others a shard holds, by its number.
        orphans: the latents without a source in each shard, which have a place there.
    """
    units: list[Unit] = []
    begin, number = 0, 0
    while begin < len(planned):
        inside = orphans.get(number, frozenset())
        size = layout.unit_size - gaps.get(number, 0) - len(inside)
        part = planned[begin : begin + max(0, size)]
        if part:
            find = partial(iter, part)
            units.append(Unit(layout, find, count=len(part), first_shard=number, orphans=inside))
        begin, number = begin + len(part), number + 1
    return units


def tar_units(tars: Sequence[Archive], layout: Layout, rules: NameRules = EXACT) -> list[Unit]:
    """A unit for each tar; `rules` are those of DEST."""
    names = layout.rules(rules)
    return [
        Unit(layout, partial(_within, tar, layout, names), folder=f"{tar.prefix}/", etag=tar.etag)
        for tar in tars
    ]


def digest_of(units: Sequence[Unit]) -> str:
    """The same for all processes that cut the same files in the same way, whatever is in tars."""
    digest = hashlib.blake2b(digest_size=16)
    for unit in units:
        listed = () if unit.folder else unit.find()
        outputs = (found.output for found in listed if isinstance(found, Planned))
        digest.update(
            "\0".join([unit.folder, str(unit.first_shard), *outputs]).encode(
                "utf-8", "surrogatepass"
            )
            + b"\0\0"
        )
    return digest.hexdigest()


def _within(tar: Archive, layout: Layout, rules: NameRules) -> Iterator[Planned | Problem]:
    first: dict[str, Planned] = {}
    for found in pictures(tar, suffixes=IMAGE_SUFFIXES):
        yield found if isinstance(found, Problem) else _named(found, layout, rules, first)


def _named(
    entry: Entry, layout: Layout, rules: NameRules, first: dict[str, Planned]
) -> Planned | Problem:
    """A member's output; `first` holds the members so far by theirs."""
    planned = Planned(entry, layout.output(entry.key))
    other = first.setdefault(rules.same(planned.output), planned)
    if other is not planned:
        hint = collision_hint(other, planned, layout.keep_extension)
        return Problem(entry.key, f"`{other.entry.key}` has the same output; {hint}")
    return planned


def _refuse_shared_folders(
    planned: Sequence[Planned], tars: Sequence[Archive], rules: NameRules
) -> None:
    """Raises UsageError if something else would write into the folder of a tar's pictures."""
    prefixes: dict[str, Archive] = {}
    for tar in tars:
        other = prefixes.setdefault(rules.same(tar.prefix), tar)
        if other is not tar:
            raise _shared(f"`{other.entry.place}`", tar)
    if not prefixes:
        return
    inside = {rules.same(tar.prefix).rpartition("/")[0]: tar.entry.place for tar in tars}
    for plan in planned:
        folder = rules.same(plan.output).rpartition("/")[0]
        if folder not in inside:
            inside[folder] = plan.entry.place
    for folder, place in inside.items():
        while folder:
            if (tar_there := prefixes.get(folder)) is not None:
                raise _shared(f"`{place}`", tar_there)
            folder = folder.rpartition("/")[0]


def _shared(place: str, tar: Archive) -> UsageError:
    return UsageError(
        f"{place} and the members of `{tar.entry.place}` would both write below `{tar.prefix}/`",
        "encode them into different DESTs",
    )

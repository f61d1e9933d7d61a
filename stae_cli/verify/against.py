"""Stored latents against their sources and manifests: missing, stale, orphaned, misplaced."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from itertools import islice

from stae_cli.errors import UsageError
from stae_cli.flow.read_ahead import Reserve, scanning
from stae_cli.images.read import IMAGE_SUFFIXES
from stae_cli.latents.format import SUFFIX
from stae_cli.latents.manifest import NAME, read_manifests
from stae_cli.latents.writer import Compare, has_content
from stae_cli.runs.tally import problem_or
from stae_cli.storage.archives import Inside, pictures
from stae_cli.storage.destination import Destination
from stae_cli.storage.entry import Entry, Problem, SourceState
from stae_cli.storage.names import output_name
from stae_cli.storage.sources import Listing
from stae_cli.verify.findings import CheckedLatent, Finding

BATCH = 256  # sources whose state a thread reads at once
Stated = tuple[Entry | Problem, SourceState | Problem | None]
WithSource = tuple[CheckedLatent, Entry]  # a source that has not changed since


class Against:
    """Compares latents with a listing of sources, by the keys that the latents record.

    Args:
        latents: all of DEST.
        broken: keys, without the suffix, of unreadable files; their sources are not missing.
        failures: why inputs of the last run failed, by key.
        compare: sources with what latents record of them, by size and time or by content.
    """

    def __init__(
        self,
        latents: Sequence[CheckedLatent],
        *,
        broken: Set[str],
        failures: Mapping[str, str],
        compare: Compare = "time",
    ) -> None:
        self.compare_by = compare
        self.latents, self.broken, self.failures = latents, broken, failures
        by_trust = sorted(latents, key=lambda latent: latent.is_named_after_its_source)
        self.expected = {latent.source: latent for latent in by_trust}
        self.seen: dict[str, str] = {}  # the location of each key's source; of members, the tar's

    def compare(self, listing: Listing, *, workers: int | None) -> Iterator[WithSource | Finding]:
        """Every source with or without a latent, then every latent without a source.

        Raises:
            UsageError: two sources have one key.
        """
        for problem in listing.problems:
            yield Finding("unreadable", problem.key, problem.reason)
        with scanning(_batches(listing), _states, workers=workers) as batches:
            for batch in batches:
                for entry, state in batch:
                    if isinstance(entry, Problem):
                        yield Finding("unreadable", entry.key, entry.reason)
                        continue
                    self._refuse_another(entry)
                    if found := self._found(entry, state):
                        yield found
        for latent in self.latents:
            if latent.source not in self.seen:
                reason = f"its source `{latent.source}` is not there"
                yield Finding("orphaned", latent.label, reason)

    def _refuse_another(self, entry: Entry) -> None:
        place = entry.archive.place if isinstance(entry, Inside) else entry.place
        other = self.seen.setdefault(entry.key, place)
        if other != place:
            raise UsageError(
                f"`{other}` and `{place}` have the same key `{entry.key}`",
                "give the sources as they were given to `stae encode`",
            )

    def _found(
        self, entry: Entry, state: SourceState | Problem | None
    ) -> WithSource | Finding | None:
        if isinstance(state, Problem):
            return Finding("unreadable", entry.key, state.reason)
        latent = self.expected.get(entry.key)
        if latent is None:
            if self.broken.isdisjoint((entry.key, output_name(entry.key, "", None, False))):
                failure = self.failures.get(entry.key)
                reason = f"no latent; the last run says: {failure}" if failure else "no latent"
                return Finding("missing", entry.key, reason)
            return None
        unchanged: bool | Problem = latent.state == state
        if self.compare_by == "content" and latent.content:
            unchanged = problem_or(entry.key, lambda: has_content(entry, latent.content))
        if isinstance(unchanged, Problem):
            return Finding("unreadable", entry.key, unchanged.reason)
        if not unchanged:
            reason = f"its source `{entry.key}` has changed since"
            return Finding("stale", latent.label, reason)
        return latent, entry


def _batches(listing: Listing) -> Iterator[list[Entry | Problem]]:
    """All sources in the order of `encode`, `BATCH` at a time."""
    entries = _entries(listing)
    while batch := list(islice(entries, BATCH)):
        yield batch


def _entries(listing: Listing) -> Iterator[Entry | Problem]:
    yield from listing.entries
    for tar in listing.tars:
        yield from pictures(tar, suffixes=IMAGE_SUFFIXES)


def _states(batch: list[Entry | Problem], _reserve: Reserve) -> list[Stated]:
    """Runs in a reading thread."""
    return [
        (entry, None if isinstance(entry, Problem) else problem_or(entry.key, entry.state))
        for entry in batch
    ]


def wrong_lines(
    destination: Destination, latents: Sequence[CheckedLatent], *, broken: Collection[str]
) -> Iterator[Finding]:
    """Where the manifests of DEST and its shards disagree.

    Args:
        destination: DEST, of shards.
        latents: all of DEST.
        broken: the names, without the suffix, of unreadable shards; their lines may be right.

    Raises:
        StaeError: DEST cannot be read.
    """
    shards = {latent.key: latent.file.key for latent in latents}
    listed, manifests = set(), set()
    for line in read_manifests(destination):
        if isinstance(line, Problem):
            manifests.add(line.key)
            yield Finding("manifest", line.key, line.reason)
            continue
        manifests.add(line.manifest)
        if line.key in listed:
            yield Finding("manifest", line.manifest, f"it lists `{line.key}` twice")
        listed.add(line.key)
        shard = shards.get(line.key)
        if shard != line.shard and line.shard.removesuffix(SUFFIX) not in broken:
            where = f"it is in `{shard}`" if shard else "it is in none"
            reason = f"it says that `{line.key}` is in `{line.shard}`; {where}"
            yield Finding("manifest", line.manifest, reason)
    if not manifests and shards:
        yield Finding("manifest", f"{NAME}.jsonl", "absent: the last run did not finish")
        return
    for key, shard in shards.items():
        if key not in listed:
            yield Finding("manifest", shard, f"no manifest lists `{key}`")

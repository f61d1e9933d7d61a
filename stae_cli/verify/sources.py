"""Outputs against the sources that they were made from: missing, stale and orphaned ones."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from stae_cli.errors import UsageError
from stae_cli.flow.read_ahead import Reserve, scanning
from stae_cli.images.read import IMAGE_SUFFIXES
from stae_cli.runs.tally import problem_or
from stae_cli.storage.entry import Entry, MemberEntry, Problem, SourceState
from stae_cli.storage.names import output_name
from stae_cli.storage.remote_entry import FetchedMember
from stae_cli.storage.sources import Listing
from stae_cli.storage.tars import members
from stae_cli.verify.findings import Finding
from stae_cli.verify.outputs import Output

BATCH = 256  # states that a thread asks for at a time
Stated = tuple[Entry | Problem, SourceState | Problem | None]


@dataclass(frozen=True)
class Match:
    """An output and the source that it was made from, which is still in the same state."""

    output: Output
    entry: Entry


class Against:
    """Compares outputs with a listing of sources, by the keys that the outputs record.

    Args:
        outputs: those of DEST.
        broken: keys, without the suffix, of files whose latents are unknown; their sources are
            not missing.
        failures: why inputs of the last run failed, by key.
    """

    def __init__(
        self, outputs: Sequence[Output], *, broken: Collection[str], failures: Mapping[str, str]
    ) -> None:
        self.outputs, self.broken, self.failures = outputs, broken, failures
        by_trust = sorted(outputs, key=lambda output: output.is_named_after_its_source)
        self.expected = {output.source: output for output in by_trust}
        self.seen: dict[str, str] = {}  # where the source of each key lies; of members, the tar

    def compare(self, listing: Listing, *, workers: int | None) -> Iterator[Match | Finding]:
        """Every source whose output is there or not, then every output without a source.

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
                    elif self._is_new(entry) and (found := self._found(entry, state)):
                        yield found
        for output in self.outputs:
            if output.source not in self.seen:
                reason = f"its source `{output.source}` is not there"
                yield Finding("orphaned", output.label, reason)

    def _is_new(self, entry: Entry) -> bool:
        """Whether this is the first source of its key; tars may name a member twice."""
        is_member = isinstance(entry, MemberEntry | FetchedMember)
        place = entry.place.removesuffix(f":{entry.key}") if is_member else entry.place
        is_new = entry.key not in self.seen
        other = self.seen.setdefault(entry.key, place)
        if is_new or (is_member and other == place):
            return is_new
        raise UsageError(
            f"`{other}` and `{place}` have the same key `{entry.key}`",
            "give the sources as they were given to `stae encode`",
        )

    def _found(self, entry: Entry, state: SourceState | Problem | None) -> Match | Finding | None:
        if isinstance(state, Problem):
            return Finding("unreadable", entry.key, state.reason)
        output = self.expected.get(entry.key)
        if output is None:
            return None if self._is_broken(entry.key) else self._missing(entry.key)
        if output.state != state:
            reason = f"its source `{entry.key}` has changed since"
            return Finding("stale", output.label, reason)
        return Match(output, entry)

    def _is_broken(self, key: str) -> bool:
        return key in self.broken or output_name(key, "", None, False) in self.broken

    def _missing(self, key: str) -> Finding:
        failure = self.failures.get(key)
        reason = f"no latent; the last run says: {failure}" if failure else "no latent"
        return Finding("missing", key, reason)


def _batches(listing: Listing) -> Iterator[list[Entry | Problem]]:
    """All sources, as `encode` orders them, so many at a time."""
    batch: list[Entry | Problem] = []
    for entry in _entries(listing):
        batch.append(entry)
        if len(batch) == BATCH:
            yield batch
            batch = []
    yield batch


def _entries(listing: Listing) -> Iterator[Entry | Problem]:
    yield from listing.entries
    for tar in listing.tars:
        try:
            yield from members(tar, suffixes=IMAGE_SUFFIXES)
        except OSError as error:
            yield Problem(f"{tar.prefix}.tar", f"cannot read it: {error.strerror or error}")


def _states(batch: list[Entry | Problem], _reserve: Reserve) -> list[Stated]:
    """Runs in a reading thread."""
    return [
        (entry, None if isinstance(entry, Problem) else problem_or(entry.key, entry.state))
        for entry in batch
    ]

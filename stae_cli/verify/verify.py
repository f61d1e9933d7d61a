"""The check behind `stae verify`: that latents are whole, alike, and of sources still there."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from stae_cli.errors import StaeError, UsageError
from stae_cli.flow.read_ahead import scanning
from stae_cli.images.read import IMAGE_SUFFIXES
from stae_cli.latents.failures import read_failures
from stae_cli.latents.format import SUFFIX
from stae_cli.latents.run_record import NAME, SHARDS, RunRecord, read_record
from stae_cli.storage.destination import Destination
from stae_cli.storage.entry import Entry, Problem
from stae_cli.storage.fsspec_store import is_url
from stae_cli.storage.names import folded
from stae_cli.storage.remote_destination import destination_at
from stae_cli.storage.sources import Listing, list_below, list_sources
from stae_cli.storage.temp_files import TEMPORARY
from stae_cli.verify.findings import Finding, Kind
from stae_cli.verify.manifests import wrong_lines
from stae_cli.verify.outputs import CheckedFile, MadeWith, Output, check_file
from stae_cli.verify.reencode import Reencoded, reencode
from stae_cli.verify.sources import Against, Match

if TYPE_CHECKING:
    from stae_cli.codec.pixel_codec import PixelCodec

Item = TypeVar("Item")


@dataclass(frozen=True)
class VerifyPlan:
    """What is to be checked: the files of a DEST, and the sources that it was made from, if given.

    `sample` sound latents are drawn with `seed`, to be encoded again.
    """

    destination: Destination
    files: Sequence[Entry]
    problems: Sequence[Problem]
    sources: Listing | None
    sample: int
    seed: int
    workers: int | None


@dataclass
class Verification:
    """What a DEST holds and what is wrong with it.

    `made_with` is what most latents, or the run record, say of all; None where there are none.
    `sources` counts those that were looked at; `sample` holds some of the sound ones.
    """

    dest: str
    record: RunRecord | None = None
    made_with: MadeWith | None = None
    latents: int = 0
    files: int = 0
    size: int = 0  # bytes
    sources: int | None = None
    findings: list[Finding] = field(default_factory=list)
    sample: list[Match] = field(default_factory=list)
    reencoded: list[Reencoded] = field(default_factory=list)

    @property
    def counts(self) -> Counter[Kind]:
        """How many findings there are of each kind."""
        return Counter(finding.kind for finding in self.findings)

    def find(self, kind: Kind, key: str, reason: str) -> None:
        """Adds a finding."""
        self.findings.append(Finding(kind, key, reason))


def plan_verify(
    dest: Path | str,
    sources: Sequence[Path | str],
    *,
    sample: int = 0,
    seed: int = 0,
    workers: int | None = None,
) -> VerifyPlan:
    """Lists the files of DEST, and the sources as `encode` does.

    Raises:
        UsageError: DEST is not there, a source is absent, DEST lies inside one, or a sample is
            asked for without sources.
        StaeError: sources are given and there is nothing in them, or a store cannot be reached.
    """
    if sample and not sources:
        raise UsageError("there is nothing to encode again", "give the sources: `--against SOURCE`")
    if not is_url(dest) and not Path(dest).is_dir():
        raise UsageError(f"no such folder: `{dest}`", "give the DEST of `stae encode`")
    against = None
    if sources:
        against = list_sources(sources, dest, suffixes=IMAGE_SUFFIXES, with_tars=True)
    listing = list_below([dest], frozenset([SUFFIX]), hidden=True)
    return VerifyPlan(
        destination_at(dest), listing.entries, listing.problems, against, sample, seed, workers
    )


def verify(plan: VerifyPlan, *, advance: Callable[[int], None]) -> Verification:
    """Reads every latent of DEST, and looks at every source.

    Args:
        plan: from `plan_verify`.
        advance: called with the number of latents that were checked.

    Raises:
        UsageError: two sources have one key.
        StaeError: DEST holds no latents but pictures.
    """
    return _Verifying(plan, advance).run()


def compare_sample(
    found: Verification,
    codec: PixelCodec,
    *,
    workers: int | None = None,
    advance: Callable[[int], None],
) -> None:
    """Encodes the sample again, and adds to the verification what that tells.

    Args:
        found: from `verify`.
        codec: with the weights of `found.made_with`.
        workers: reading threads.
        advance: called with the number of latents that were compared.
    """
    for result in reencode(found.sample, codec, workers=workers, advance=advance):
        if isinstance(result, Reencoded):
            found.reencoded.append(result)
        finding = result.finding if isinstance(result, Reencoded) else result
        if finding is not None:
            found.findings.append(finding)


class _Verifying:
    """One check's state."""

    def __init__(self, plan: VerifyPlan, advance: Callable[[int], None]) -> None:
        self.plan, self.advance = plan, advance
        self.found = Verification(plan.destination.place())
        self.outputs: list[Output] = []
        self.broken: set[str] = set()  # files whose latents are not known, without the suffix
        self.doubtful: set[str] = set()  # latents that it makes no sense to encode again

    def run(self) -> Verification:
        found = self.found
        self._read_record()
        for problem in self.plan.problems:
            found.find("damaged", problem.key, problem.reason)
        with scanning(self.plan.files, check_file, workers=self.plan.workers) as checked:
            for file in checked:
                self._take(file)
        self._compare_settings()
        self._find_doubles()
        self._find_temporaries()
        self._compare_manifests()
        self._compare_sources()
        return found

    def _read_record(self) -> None:
        try:
            self.found.record = read_record(self.plan.destination)
        except StaeError as error:
            self.found.find("record", NAME, error.message)
            return
        record = self.found.record
        if record is None:
            self.found.find("record", NAME, "DEST has no run record")
        elif record.kind != "latents":
            raise StaeError(
                f"`{self.found.dest}` holds {record.kind}, not latents",
                "give the DEST of `stae encode`",
            )

    def _take(self, file: CheckedFile) -> None:
        found = self.found
        if file.problem is not None:
            found.find("damaged", file.problem.key, file.problem.reason)
            self.broken.add(file.entry.key[: -len(SUFFIX)])
        else:
            found.files += 1
            found.size += file.size
        for problem in file.unsound:
            found.find("damaged", problem.key, problem.reason)
            self.doubtful.add(problem.key)
        for output in file.outputs:
            self._look_at(output)
        self.advance(len(file.outputs))

    def _look_at(self, output: Output) -> None:
        self.outputs.append(output)
        self.found.latents += 1
        if not output.is_named_after_its_source:
            reason = f"it says that it was made from `{output.source}`"
            self.found.find("misnamed", output.label, reason)
            self.doubtful.add(output.label)

    def _compare_settings(self) -> None:
        """Every latent with the run record, or else with most of the others."""
        common = Counter(output.made_with for output in self.outputs).most_common(1)
        if not common:
            return
        usual = _as_recorded(common[0][0], self.found.record)
        self.found.made_with = usual
        than = "the run record says" if self.found.record else "most latents say"
        reasons: dict[MadeWith, str] = {}
        for output in self.outputs:
            made_with = output.made_with
            if made_with not in reasons:
                reasons[made_with] = _differences(made_with, usual, than)
            if reasons[made_with]:
                self.found.find("mixed", output.label, reasons[made_with])
                self.doubtful.add(output.label)

    def _find_doubles(self) -> None:
        keys: dict[str, Output] = {}
        sources: dict[str, Output] = {}
        for output in self.outputs:
            twin = keys.setdefault(folded(output.key), output)
            if twin is not output:
                self.found.find("duplicate", output.label, f"`{twin.label}` has the same key")
            elif output.is_named_after_its_source:
                twin = sources.setdefault(output.source, output)
                if twin is not output:
                    reason = f"`{twin.label}` was made from the same source `{output.source}`"
                    self.found.find("duplicate", output.label, reason)

    def _find_temporaries(self) -> None:
        for name in self.plan.destination.names():
            if TEMPORARY.fullmatch(name.rpartition("/")[2]):
                reason = "left by a run that was killed, or of one that is under way"
                self.found.find("temporary", name, reason)

    def _compare_manifests(self) -> None:
        record = self.found.record
        if record is not None and record.layout == SHARDS:
            lines = wrong_lines(self.plan.destination, self.outputs, broken=self.broken)
            self.found.findings += lines

    def _compare_sources(self) -> None:
        """Sources, where given, and what the last run said of them."""
        found = self.found
        failures = {p.key: p.reason for p in read_failures(self.plan.destination)}
        if self.plan.sources is not None:
            against = Against(self.outputs, broken=self.broken, failures=failures)
            matches = self._matches(against, self.plan.sources)
            found.sample = drawn(matches, self.plan.sample, seed=self.plan.seed)
            found.sources = len(against.seen)
        told = {f.key for f in found.findings if f.kind in ("missing", "unreadable")}
        for key, reason in failures.items():
            if key not in told:
                found.find("failed", key, reason)

    def _matches(self, against: Against, listing: Listing) -> Iterator[Match]:
        """Sound latents with their sources; findings are noted on the way."""
        for result in against.compare(listing, workers=self.plan.workers):
            if isinstance(result, Finding):
                self.found.findings.append(result)
            elif result.output.label not in self.doubtful:
                yield result


def drawn(items: Iterable[Item], count: int, *, seed: int) -> list[Item]:
    """So many items drawn at random, each as likely as the others (Vitter's algorithm R)."""
    generator, kept = random.Random(seed), []  # noqa: S311 (no secret)
    for index, item in enumerate(items):
        if index < count:
            kept.append(item)
        elif (place := generator.randrange(index + 1)) < count:
            kept[place] = item
    return kept


def _as_recorded(usual: MadeWith, record: RunRecord | None) -> MadeWith:
    """What most latents say of themselves, with what the run record says of all instead."""
    if record is None:
        return usual
    said = (record.weights, record.weights_sha256, record.prep, record.output, record.layout)
    return MadeWith._make([*map(str, said), usual.architecture])  # it may hold anything


def _differences(made_with: MadeWith, usual: MadeWith, than: str) -> str:
    """What differs, as `name: mine, THAN theirs`; weights count by their fingerprint alone."""
    mine, theirs = made_with._asdict(), usual._asdict()
    return "; ".join(
        f"{name.removesuffix('_sha256')} {mine[name][:12]}, {than} {theirs[name][:12]}"
        if name == "weights_sha256"
        else f"{name} {mine[name]}, {than} {theirs[name]}"
        for name in mine
        if name != "weights" and mine[name] != theirs[name]
    )

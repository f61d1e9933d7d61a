"""The check of `stae verify`: that latents are whole, alike, and that their sources exist."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from stae_cli.errors import StaeError, UsageError
from stae_cli.flow.read_ahead import scanning
from stae_cli.images.read import IMAGE_SUFFIXES
from stae_cli.latents.failures import read_failures
from stae_cli.latents.format import SUFFIX
from stae_cli.latents.parts import unfinished_parts
from stae_cli.latents.run_record import NAME, SHARDS, RunRecord, read_record
from stae_cli.latents.writer import Compare
from stae_cli.storage.destination import Destination
from stae_cli.storage.entry import Entry, Problem
from stae_cli.storage.fsspec_store import is_url
from stae_cli.storage.lists import SourceList
from stae_cli.storage.remote_destination import destination_at
from stae_cli.storage.sources import Listing, list_below, list_sources
from stae_cli.storage.temp_files import TEMPORARY
from stae_cli.verify.against import Against, WithSource, wrong_lines
from stae_cli.verify.findings import (
    CheckedFile,
    CheckedLatent,
    Finding,
    Kind,
    MadeWith,
    as_recorded,
    check_file,
    differences,
)
from stae_cli.verify.reencode import Reencoded, drawn, reencode

if TYPE_CHECKING:
    from stae_cli.codec.pixel_codec import PixelCodec


@dataclass(frozen=True)
class VerifyPlan:
    """What to check: the files of a DEST, and the sources that it was made from, if given.

    `sample` valid latents are drawn with `seed`, to be encoded again.
    """

    destination: Destination
    files: Sequence[Entry]
    problems: Sequence[Problem]
    sources: Listing | None
    sample: int
    seed: int
    workers: int | None
    compare: Compare


@dataclass
class Verification:
    """What a DEST holds and what is wrong with it.

    `made_with` is what the run record says of all latents, or else most latents; None if there are
    none. `sources` counts those that were checked; `sample` holds some of the valid latents.
    """

    dest: str
    record: RunRecord | None = None
    made_with: MadeWith | None = None
    latents: int = 0
    files: int = 0
    size: int = 0  # bytes
    sources: int | None = None
    findings: list[Finding] = field(default_factory=list)
    sample: list[WithSource] = field(default_factory=list)
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
    listed: SourceList | None = None,
    sample: int = 0,
    seed: int = 0,
    workers: int | None = None,
    compare: Compare = "time",
) -> VerifyPlan:
    """Lists the files of DEST, and the sources as `encode` does, with those of a list.

    Raises:
        UsageError: DEST or a source does not exist, DEST is inside one, or there is a sample and
            no sources.
        StaeError: the sources hold no images, or a store cannot be reached.
    """
    if sample and not (sources or listed):
        raise UsageError("there is nothing to encode again", "give the sources: `--against SOURCE`")
    if not is_url(dest) and not Path(dest).is_dir():
        what = f"`{dest}` is a file" if Path(dest).exists() else f"no such folder: `{dest}`"
        raise UsageError(what, "give the DEST of `stae encode`, a folder")
    destination, against = destination_at(dest), None
    if sources or listed:
        against = list_sources(
            sources,
            dest,
            suffixes=IMAGE_SUFFIXES,
            with_tars=True,
            image_column=_image_column(destination),
            listed=listed,
        )
    listing = list_below([dest], frozenset([SUFFIX]), hidden=True)
    return VerifyPlan(
        destination, listing.entries, listing.problems, against, sample, seed, workers, compare
    )


def _image_column(destination: Destination) -> str:
    """The column of Parquet files that DEST's run read."""
    try:
        record = read_record(destination)
    except StaeError:  # checking DEST says so
        return ""
    return record.image_column if record else ""


def verify(plan: VerifyPlan, *, advance: Callable[[int], None]) -> Verification:
    """Reads every latent of DEST, and checks every source.

    Args:
        plan: from `plan_verify`.
        advance: called with the number of latents checked.

    Raises:
        UsageError: two sources have one key.
        StaeError: DEST holds pictures, not latents.
    """
    return _Verifying(plan, advance).run()


def compare_sample(
    found: Verification,
    codec: PixelCodec,
    *,
    workers: int | None = None,
    advance: Callable[[int], None],
) -> None:
    """Encodes the sample again, and adds the results to the verification.

    Args:
        found: from `verify`.
        codec: with the weights of `found.made_with`.
        workers: reading threads.
        advance: called with the number of latents compared.
    """
    for result in reencode(found.sample, codec, workers=workers, advance=advance):
        if isinstance(result, Reencoded):
            found.reencoded.append(result)
        finding = result.finding if isinstance(result, Reencoded) else result
        if finding is not None:
            found.findings.append(finding)


class _Verifying:
    """The state of a check."""

    def __init__(self, plan: VerifyPlan, advance: Callable[[int], None]) -> None:
        self.plan, self.advance = plan, advance
        self.found = Verification(plan.destination.place())
        self.latents: list[CheckedLatent] = []
        self.broken: set[str] = set()  # unreadable files, without the suffix
        self.doubtful: set[str] = set()  # latents that are not worth encoding again

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
        for problem in unfinished_parts(self.plan.destination):
            found.find("part", problem.key, problem.reason)
        if found.record is not None and found.record.layout == SHARDS:
            found.findings += wrong_lines(self.plan.destination, self.latents, broken=self.broken)
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
            kind: Kind = "foreign" if file.is_foreign else "damaged"
            found.find(kind, file.problem.key, file.problem.reason)
            self.broken.add(file.entry.key[: -len(SUFFIX)])
        else:
            found.files += 1
            found.size += file.size
        for problem in file.unsound:
            found.find("damaged", problem.key, problem.reason)
            self.doubtful.add(problem.key)
        self.latents += file.latents
        found.latents += len(file.latents)
        for latent in file.latents:
            if not latent.is_named_after_its_source:
                reason = f"it says that it was made from `{latent.source}`"
                found.find("misnamed", latent.label, reason)
                self.doubtful.add(latent.label)
        self.advance(len(file.latents))

    def _compare_settings(self) -> None:
        """Compares each latent with the run record, or else with most others."""
        common = Counter(latent.made_with for latent in self.latents).most_common(1)
        if not common:
            return
        usual = as_recorded(common[0][0], self.found.record)
        self.found.made_with = usual
        than = "the run record says" if self.found.record else "most latents say"
        reasons: dict[MadeWith, str] = {}
        for latent in self.latents:
            made_with = latent.made_with
            if made_with not in reasons:
                reasons[made_with] = differences(made_with, usual, than)
            if reasons[made_with]:
                self.found.find("mixed", latent.label, reasons[made_with])
                self.doubtful.add(latent.label)

    def _find_doubles(self) -> None:
        keys: dict[str, CheckedLatent] = {}
        sources: dict[str, CheckedLatent] = {}
        for latent in self.latents:
            twin = keys.setdefault(latent.key, latent)
            if twin is not latent:
                self.found.find("duplicate", latent.label, f"`{twin.label}` has the same key")
            elif latent.is_named_after_its_source:
                twin = sources.setdefault(latent.source, latent)
                if twin is not latent:
                    reason = f"`{twin.label}` was made from the same source `{latent.source}`"
                    self.found.find("duplicate", latent.label, reason)

    def _find_temporaries(self) -> None:
        for name in self.plan.destination.names():
            if TEMPORARY.fullmatch(name.rpartition("/")[2]):
                reason = "left by a run that was killed, or of a run in progress"
                self.found.find("temporary", name, reason)

    def _compare_sources(self) -> None:
        """Compares with the sources, if given, and with the failures of the last run."""
        found = self.found
        failures = {p.key: p.reason for p in read_failures(self.plan.destination)}
        if self.plan.sources is not None:
            against = Against(
                self.latents, broken=self.broken, failures=failures, compare=self.plan.compare
            )
            matches = self._matches(against, self.plan.sources)
            found.sample = drawn(matches, self.plan.sample, seed=self.plan.seed)
            found.sources = len(against.seen)
        reported = {f.key for f in found.findings if f.kind in ("missing", "unreadable")}
        for key, reason in failures.items():
            if key not in reported:
                found.find("failed", key, reason)

    def _matches(self, against: Against, listing: Listing) -> Iterator[WithSource]:
        """Valid latents with their sources; adds findings on the way."""
        for result in against.compare(listing, workers=self.plan.workers):
            if isinstance(result, Finding):
                self.found.findings.append(result)
            elif result[0].label not in self.doubtful:
                yield result

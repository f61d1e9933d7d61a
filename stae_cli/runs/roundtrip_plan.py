"""What is known of a roundtrip before the network is needed, and the tally of its run."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from stae_cli.errors import StaeError, UsageError
from stae_cli.images.plugins import REMEDIES
from stae_cli.images.read import IMAGE_SUFFIXES
from stae_cli.images.resize import Prep
from stae_cli.metrics import Overall, Score, overall
from stae_cli.report.page import ORIGINAL, THUMBNAIL
from stae_cli.runs.tally import Tally
from stae_cli.storage.destination import FolderDestination
from stae_cli.storage.entry import Entry, Problem
from stae_cli.storage.names import (
    EXACT,
    NameRules,
    Planned,
    is_too_long,
    plan_outputs,
    problem_of,
)
from stae_cli.storage.remote_destination import local_folder
from stae_cli.storage.sources import list_sources

METRICS_NAME = "metrics.json"
PAGE_NAME = "index.html"
MARK = b'<meta name="generator" content="stae '  # of our pages
HEAD_BYTES = 4096
WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth")
LONGEST_SHORT = 40  # letters of an autoencoder's name


@dataclass(frozen=True)
class RoundtripSettings:
    """How images are prepared; `workers` threads read, and as many write.

    `names` are those of the autoencoders, as `short_names` makes them.
    """

    prep: Prep
    names: Sequence[str]
    workers: int | None = None

    @property
    def suffixes(self) -> list[tuple[str, str]]:
        """Of each autoencoder's reconstructions and comparison pictures."""
        kinds = ("reconstruction.png", "comparison.png")
        if len(self.names) == 1:
            return [kinds]
        return [(f"{name}.{kinds[0]}", f"{name}.{kinds[1]}") for name in self.names]

    @property
    def all_suffixes(self) -> list[str]:
        """Of all files of a picture."""
        return [ORIGINAL, THUMBNAIL, *(each for pair in self.suffixes for each in pair)]


@dataclass(frozen=True)
class RoundtripPlan:
    """Everything that is known before the network is needed."""

    outputs: Sequence[Planned]
    problems: Sequence[Problem]
    passed_over: Counter[str]
    destination: FolderDestination
    settings: RoundtripSettings

    @property
    def total(self) -> int:
        """How many inputs there are."""
        return len(self.outputs) + len(self.problems)


@dataclass(frozen=True)
class Scored:
    """One image's key, the size that was compared, and its score by each autoencoder."""

    key: str
    width: int
    height: int
    scores: Sequence[Score]


@dataclass
class RoundtripTally(Tally):
    """The tally of a run, with the figures of each image."""

    scored: list[Scored] = field(default_factory=list)

    def overall(self, index: int = 0) -> Overall | None:
        """Figures of one autoencoder over all images; None when there are none."""
        return overall([one.scores[index] for one in self.scored]) if self.scored else None


def plan_roundtrip(
    sources: Sequence[Path | str], dest: Path | str, settings: RoundtripSettings
) -> RoundtripPlan:
    """Finds the images, names their outputs by their whole keys, and prepares DEST.

    Raises:
        UsageError: a missing source, DEST inside a source or a file, colliding outputs.
        StaeError: no images found, DEST holds the page of another program, or cannot be written to.
    """
    destination = local_folder(dest)
    listing = list_sources(sources, dest, suffixes=IMAGE_SUFFIXES, remedies=REMEDIES)
    outputs = _planned(listing.entries, settings, EXACT)
    for name, is_ours in ((PAGE_NAME, _is_page), (METRICS_NAME, _is_metrics)):
        _check_place(destination, name, is_ours)
    destination.prepare()
    if (rules := destination.rules) != EXACT:
        outputs = _planned(listing.entries, settings, rules)
    good, problems = _without_long(outputs, settings)
    problems = [*listing.problems, *problems]
    return RoundtripPlan(good, problems, listing.passed_over, destination, settings)


def _planned(
    entries: Sequence[Entry], settings: RoundtripSettings, rules: NameRules
) -> list[Planned]:
    """Named outputs, of which no file is in the way of another one's folder."""
    outputs = plan_outputs(entries, "", keep_extension=True, rules=rules)
    folders: dict[str, Planned] = {}
    for each in outputs:
        part = each.output.rpartition("/")[0]
        while part and (same := rules.same(part)) not in folders:
            folders[same] = each
            part = part.rpartition("/")[0]
    if folders:
        _refuse_folders(outputs, folders, settings, rules)
    return outputs


def _refuse_folders(
    outputs: Sequence[Planned],
    folders: Mapping[str, Planned],
    settings: RoundtripSettings,
    rules: NameRules,
) -> None:
    made = [(f"{each.output}.{s}", each.entry) for each in outputs for s in settings.all_suffixes]
    for name, entry in [*made, *((name, None) for name in (PAGE_NAME, METRICS_NAME))]:
        if inside := folders.get(rules.same(name)):
            what = f"`{entry.place}`" if entry else "the report"
            raise UsageError(
                f"{what} would write `{name}`, which is a folder for `{inside.entry.place}`",
                "rename one of them, or give them different DESTs",
            )


def _without_long(
    outputs: Sequence[Planned], settings: RoundtripSettings
) -> tuple[list[Planned], list[Problem]]:
    """The outputs, without those whose names no file system takes."""
    longest = max(settings.all_suffixes, key=lambda suffix: len(suffix.encode()))
    long = [each for each in outputs if is_too_long(f"{each.output}.{longest}")]
    problems = [Problem(each.entry.key, "its name is too long; rename it") for each in long]
    return [each for each in outputs if each not in long] if long else [*outputs], problems


def remove_earlier(destination: FolderDestination) -> None:
    """Removes what an earlier run lists in its metrics: its page, and the pictures in it.

    Raises:
        StaeError: something cannot be removed.
    """
    try:
        earlier = json.loads(destination.path(METRICS_NAME).read_text(encoding="utf-8"))
        names = [str(each["name"]) for each in earlier["autoencoders"]]
        keys = [str(each["source"]) for each in earlier["images"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # there is none
        names, keys = [], []
    destination.remove(PAGE_NAME)
    destination.remove(METRICS_NAME)
    if names:
        suffixes = RoundtripSettings(prep=Prep(), names=names).all_suffixes
        for key in keys:
            for name in (f"{key}.{suffix}" for suffix in suffixes):
                # A file that somebody wrote must not lead out of DEST.
                if problem_of(key) is None and "/" not in name.removeprefix(key):
                    destination.remove(name)


def _is_page(data: bytes) -> bool:
    return MARK in data[:HEAD_BYTES]


def _is_metrics(data: bytes) -> bool:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"prep", "images", "failed"} <= found.keys()


def _check_place(
    destination: FolderDestination, name: str, is_ours: Callable[[bytes], bool]
) -> None:
    """Checks that what a run writes beside its pictures replaces no file of another program.

    Raises:
        StaeError: one is in its place.
    """
    path = destination.path(name)
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):  # `prepare` reports the latter
        return
    except OSError as error:
        data, reason = b"", f": {error.strerror or error}"
    else:
        reason = ""
    if not is_ours(data):
        raise StaeError(
            f"the report's place is taken: `{path}` is not of an earlier roundtrip{reason}",
            "move it, or give another folder",
        )


def short_names(names: Sequence[str]) -> list[str]:
    """A short name for each checkpoint or folder, as parts of file names: all different.

    A clash is resolved by the folder above, then by a number.
    """
    found = [_short(name, 1) for name in names]
    for index, name in enumerate(names):
        if _same(found[index]) in map(_same, found[:index]):
            found[index] = _short(name, 2)
        number, plain = 1, found[index]
        while _same(found[index]) in map(_same, found[:index]):
            number += 1
            found[index] = f"{plain}-{number}"
    return found


def _short(name: str, parts: int) -> str:
    """The last parts of a path or a hub's name, without suffix and revision."""
    name = name.rpartition("@")[0] if name.startswith("hf://") and "@" in name else name
    path = PurePath(name)
    stem = path.stem if path.suffix.lower() in WEIGHTS_SUFFIXES else path.name
    whole = "-".join([*path.parts[-parts:-1], stem])
    return re.sub(r"[^\w-]+", "-", whole)[-LONGEST_SHORT:].strip("-") or "weights"


def _same(name: str) -> str:
    """Equal for names that some file systems take for one."""
    return NameRules(case=True, form=True).same(name)

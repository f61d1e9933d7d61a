"""What there is to decode below some sources: latents of stae, or those of other programs."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stae_cli.errors import InputError, UsageError
from stae_cli.foreign.arrays import ForeignArray, ForeignLatent
from stae_cli.foreign.files import SUFFIXES, arrays_in, is_statistics
from stae_cli.latents.format import SUFFIX, StoredLatent
from stae_cli.latents.listing import in_parts, looked_into, stored_in
from stae_cli.latents.safetensors_header import ForeignFileError
from stae_cli.storage.entry import Entry, FileEntry, Problem
from stae_cli.storage.fsspec_store import is_url
from stae_cli.storage.names import output_name, suffix_of
from stae_cli.storage.sources import list_sources

STATISTICS, LABELS = "statistics of latents", "arrays of integers"  # what is passed over
NAMED = 3  # arrays that are wrong before a file is listed as one failure
DIGITS = 5  # of the number of a latent, at least
LONGEST_NAME = 60  # characters of an array, in names of pictures

_log = logging.getLogger(__name__)


@dataclass
class DecodableListing:
    """Latents of stae, or arrays of others by file; invalid inputs; how many files do not count."""

    latents: list[StoredLatent] = field(default_factory=list)
    foreign: list[list[ForeignArray]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def list_decodable(
    sources: Sequence[Path | str], dest: Path | str, *, statistics: Path | None = None
) -> DecodableListing:
    """Reads the headers of all files below the sources that can hold latents.

    Files of other programs that lie in a folder with latents of stae are passed over.

    Args:
        sources: files, folders or URLs.
        dest: where the pictures go; it must not be inside a source.
        statistics: a file that is not a source, even if it is below one.

    Raises:
        UsageError: a source does not exist, DEST is inside one, or foreign files were given
            together with latents of stae.
        StaeError: there are no files, or a store cannot be reached.
    """
    listing = list_sources(sources, dest, suffixes=[SUFFIX, *SUFFIXES], hidden=True)
    found = DecodableListing(problems=list(listing.problems), passed_over=listing.passed_over)
    others: list[tuple[Entry, InputError]] = []
    for entry, result in zip(
        listing.entries, looked_into(listing.entries, _latents_or_error), strict=True
    ):
        if not isinstance(result, InputError):
            found.latents += result
        elif isinstance(result, ForeignFileError) or suffix_of(entry.key) in SUFFIXES:
            others.append((entry, result))
        else:
            found.problems.append(Problem(entry.key, result.message))
    if found.latents:
        _pass_over(others, _given(sources), found)
    else:
        for entry, _ in others:
            _add_foreign(entry, statistics, found)
    return found


def _latents_or_error(entry: Entry) -> list[StoredLatent] | InputError:
    try:
        return stored_in(in_parts(entry))
    except InputError as error:
        return error


def _given(sources: Sequence[Path | str]) -> Collection[str]:
    """The sources that are files, as their entries name them."""
    local = (Path(source) for source in sources if not (isinstance(source, str) and is_url(source)))
    return {str(path) for path in local if path.is_file()}


def _pass_over(
    others: Iterable[tuple[Entry, InputError]], given: Collection[str], found: DecodableListing
) -> None:
    for entry, error in others:
        suffix = suffix_of(entry.key)
        if suffix not in SUFFIXES:
            found.problems.append(Problem(entry.key, error.message))
        elif entry.place in given:
            raise UsageError(
                f"`{entry.place}` is not of stae, but `{found.latents[0].file.place}` is",
                "decode latents of other programs in a run of their own",
            )
        else:
            found.passed_over[suffix] += 1


def _add_foreign(entry: Entry, statistics: Path | None, found: DecodableListing) -> None:
    if not isinstance(entry, FileEntry):
        reason = "latents of other programs are read from this machine only: copy it to a folder"
        found.problems.append(Problem(entry.key, reason))
        return
    if statistics is not None and statistics.exists() and entry.path.samefile(statistics):
        found.passed_over[STATISTICS] += 1
        return
    try:
        arrays = arrays_in(entry)
    except InputError as error:
        found.problems.append(Problem(entry.key, error.message))
    except OSError as error:
        found.problems.append(Problem(entry.key, f"cannot read it: {error.strerror or error}"))
    else:
        _sort_out(entry, arrays, found)


def _sort_out(entry: FileEntry, arrays: list[ForeignArray], found: DecodableListing) -> None:
    if is_statistics(arrays):
        found.passed_over[STATISTICS] += 1
        return
    good = [array for array in arrays if array.problem() is None]
    wrong = [(array, reason) for array in arrays if (reason := array.problem())]
    if not arrays:
        found.problems.append(Problem(entry.key, "it holds no arrays"))
    elif not good and len(wrong) > NAMED:
        reason = f"it holds {len(wrong)} arrays, none of them latents; `{wrong[0][0].name}` is "
        found.problems.append(Problem(entry.key, reason + wrong[0][1]))
    else:
        for array, reason in wrong:
            if good and _are_labels(array):
                _log.info("passed over %s: %s", array.label, reason)
                found.passed_over[LABELS] += 1
            else:
                found.problems.append(Problem(array.label, reason))
    if good:
        found.foreign.append(good)


def _are_labels(array: ForeignArray) -> bool:
    return len(array.shape) < 3 and array.dtype.startswith(("int", "uint", "bool"))


def named(arrays: Sequence[ForeignArray]) -> Iterator[ForeignLatent]:
    """The latents of one file's arrays, each with the key of its picture.

    That is the file's without its suffix; of several arrays and latents, `FILE/ARRAY/00000`.
    """
    stem = output_name(arrays[0].file.key, "", None, False)
    for array in arrays:
        key = f"{stem}/{_plain(array.name)}" if len(arrays) > 1 else stem
        if array.latents == 1:
            yield ForeignLatent(key, array, 0 if len(array.shape) == 4 else None)
            continue
        digits = max(DIGITS, len(str(array.latents - 1)))
        for index in range(array.latents):
            yield ForeignLatent(f"{key}/{index:0{digits}d}", array, index)


def _plain(name: str) -> str:
    """An array's name as a part of a file name: it may be any text."""
    return re.sub(r"[^\w.-]+", "_", name).strip(".")[:LONGEST_NAME] or "array"

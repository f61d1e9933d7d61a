"""What a run leaves beside its outputs: the record of its settings, and its failures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import PurePosixPath
from typing import Literal, get_args

from stae_cli.errors import InputError, StaeError
from stae_cli.images.write import PictureFormat, read_picture_record
from stae_cli.latents.format import SUFFIX as LATENT_SUFFIX
from stae_cli.latents.listing import stored_in
from stae_cli.storage.destination import Destination
from stae_cli.storage.entry import Entry, FileEntry, Problem
from stae_cli.storage.shares import Share, remove_outdated, shared_lines

NAME = "stae.json"
FORMAT_VERSION = "1"
OPTIONAL = {"shard_size", "names"}  # earlier versions did not write them
FILES, SHARDS = "files", "shards"  # layouts
STEM, WHOLE = "without extensions", "with extensions"  # names of outputs
NO_PREP = "{}"
FAILURES = "failures"  # name of the files, without rank and suffix

MadeWith = tuple[str, str, str, str, str]  # kind, fingerprint, prep, output and layout


@dataclass(frozen=True)
class RunRecord:
    """Settings that all outputs of a DEST share; a run with other settings is refused.

    `kind` is `latents` or `pictures`; `output` is the latents' dtype or the pictures' format;
    `layout` is `files`, or `shards` of `shard_size` pictures; `names` says whether
    outputs keep the extensions of their sources.
    """

    kind: Literal["latents", "pictures"]
    weights: str
    weights_sha256: str
    prep: str
    output: str
    layout: str = FILES
    shard_size: int = 0
    names: str = STEM
    format_version: str = FORMAT_VERSION

    def differences(self, other: RunRecord) -> list[str]:
        """What differs, as `name: mine, not theirs`; weights are compared by fingerprint."""
        weights = []
        if self.weights_sha256 != other.weights_sha256:
            mine = f"{self.weights} ({self.weights_sha256[:12]})"
            weights = [f"weights: {mine}, not {other.weights} ({other.weights_sha256[:12]})"]
        compared = ("kind", "prep", "output", "layout", "shard_size", "names", "format_version")
        return weights + [
            f"{name}: {getattr(self, name)}, not {getattr(other, name)}"
            for name in compared
            if getattr(self, name) != getattr(other, name)
        ]


def read_record(destination: Destination) -> RunRecord | None:
    """The record of a DEST, or None if it has none.

    Raises:
        StaeError: it cannot be read, or is damaged.
    """
    place = destination.place(NAME)
    try:
        with destination.entry(NAME).open() as file:
            values = json.loads(file.read())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StaeError(f"cannot read `{place}`: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(place) from error
    types = {field.name: int if field.name == "shard_size" else str for field in fields(RunRecord)}
    if not isinstance(values, dict) or not types.keys() - OPTIONAL <= values.keys():
        raise _damaged(place)
    known = {name: values[name] for name in types if name in values}
    if not all(type(value) is types[name] for name, value in known.items()):
        raise _damaged(place)
    return RunRecord(**known)


def settle_record(
    destination: Destination,
    record: RunRecord,
    *,
    is_planned: Callable[[str], bool],
    overwrite: bool,
) -> None:
    """Checks that DEST holds only what this run's record describes, then writes the record.

    Args:
        destination: DEST, prepared.
        record: this run's settings.
        is_planned: whether a file name is an output of this run.
        overwrite: whether outputs with other settings may be replaced; those that the run would
            leave in place still stop it.

    Raises:
        StaeError: DEST belongs to a run with other settings.
    """
    existing = read_record(destination)
    differences = record.differences(existing) if existing else []
    if differences and not overwrite:
        raise StaeError(
            f"`{destination.place()}` holds another run: {'; '.join(differences)}",
            "choose another DEST, or `--overwrite` to replace its outputs",
        )
    if existing is None or differences:  # another name of the same weights is not one
        renamed = existing is not None and existing.names != record.names
        _refuse_strays(destination, record, is_planned, overwrite, renamed=renamed)
        with destination.writing(NAME) as path:
            path.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")


def _refuse_strays(
    destination: Destination,
    record: RunRecord,
    is_planned: Callable[[str], bool],
    overwrite: bool,
    *,
    renamed: bool,
) -> None:
    """Stops at an output with other settings that would stay, or that must not be replaced.

    If outputs are `renamed`, that applies to every output that is not planned.
    """
    ours = (record.kind, record.weights_sha256, record.prep, record.output, record.layout)
    for name in destination.names():
        made_with = _made_with(destination.entry(name))
        if made_with is None or (overwrite and is_planned(name)):
            continue
        if made_with == ours and not renamed:
            continue
        remedy = "choose another DEST" if overwrite else "choose another DEST, or `--overwrite`"
        raise StaeError(
            f"`{destination.place(name)}` was made with other weights or settings and would "
            "stay beside this run's",
            f"{remedy}; or move that file away",
        )


def _made_with(entry: Entry) -> MadeWith | None:
    """The settings of an output of ours; None for any other file."""
    suffix = PurePosixPath(entry.key).suffix
    if suffix == LATENT_SUFFIX:
        return _latents_made_with(entry)
    if suffix.removeprefix(".") in get_args(PictureFormat) and isinstance(entry, FileEntry):
        return _picture_made_with(entry, suffix.removeprefix("."))
    return None


def _latents_made_with(entry: Entry) -> MadeWith | None:
    try:
        first = stored_in(entry)[0]
    except InputError:
        return None
    layout = FILES if first.is_alone else SHARDS
    return "latents", first.info.weights_sha256, first.info.prep, first.dtype, layout


def _picture_made_with(entry: FileEntry, form: str) -> MadeWith | None:
    picture = read_picture_record(entry.path)
    if picture is None:
        return None
    try:
        fingerprint = str(json.loads(picture)["weights_sha256"])
    except (ValueError, KeyError, TypeError):
        fingerprint = "unknown"
    return "pictures", fingerprint, NO_PREP, form, FILES


def _damaged(place: str) -> StaeError:
    return StaeError(
        f"`{place}` is not a run record of stae", "choose another DEST, or delete that file"
    )


def failures_name(share: Share) -> str:
    """The name of this process's file."""
    return share.file_name(FAILURES)


def write_failures(destination: Destination, problems: Sequence[Problem], share: Share) -> None:
    """Rewrites this process's file, or removes it if nothing failed.

    Files of runs with another number of processes are outdated, and removed.
    """
    name = failures_name(share)
    remove_outdated(destination, FAILURES, share)
    if not problems and destination.holds(name):
        destination.remove(name)
    if problems:
        lines = [json.dumps({"source": p.key, "reason": p.reason}) for p in problems]
        with destination.writing(name) as path:
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_failures(destination: Destination) -> list[Problem]:
    """The failures of all processes of the last run, as `shared_lines` reads them."""
    return list(
        shared_lines(
            destination,
            FAILURES,
            lambda _, row: Problem(str(row["source"]), str(row["reason"])),
        )
    )

"""The run record: the settings that all outputs of a DEST share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import PurePosixPath
from typing import Literal, NamedTuple, get_args

from stae_cli.errors import InputError, StaeError
from stae_cli.images.write import PictureFormat, read_picture_record
from stae_cli.latents.format import SUFFIX as LATENT_SUFFIX
from stae_cli.latents.listing import stored_in
from stae_cli.storage.destination import Destination
from stae_cli.storage.entry import Entry, FileEntry

NAME = "stae.json"
FORMAT_VERSION = "1"
OPTIONAL = {"shard_size", "names", "compute_dtype", "labels", "image_column"}  # of later versions
FILES, SHARDS = "files", "shards"  # layouts
STEM, WHOLE = "without extensions", "with extensions"  # names of outputs
NO_PREP = "{}"
CLASS_FOLDERS = "class folders"  # what labels are from


class _MadeWith(NamedTuple):
    """What one output says of its run."""

    kind: str
    weights_sha256: str
    prep: str
    output: str
    layout: str
    compute_dtype: str = ""  # pictures do not say


@dataclass(frozen=True)
class RunRecord:
    """Settings that all outputs of a DEST share; a run with other settings is refused.

    `kind` is `latents` or `pictures`; `output` is the latents' dtype or the pictures' format;
    `layout` is `files`, or `shards` of `shard_size` pictures; `names` says whether
    outputs keep the extensions of their sources; `compute_dtype` is the network's, empty if it is
    not known; `labels` says whether they are numbers of class folders, and empty leaves that open;
    `image_column` is that of Parquet files, empty for their only one.
    """

    kind: Literal["latents", "pictures"]
    weights: str
    weights_sha256: str
    prep: str
    output: str
    layout: str = FILES
    shard_size: int = 0
    names: str = STEM
    compute_dtype: str = ""
    labels: str = ""
    image_column: str = ""
    format_version: str = FORMAT_VERSION

    def differences(self, other: RunRecord) -> list[str]:
        """What differs, as `name: mine, not theirs`; weights are compared by fingerprint."""
        weights = []
        if self.weights_sha256 != other.weights_sha256:
            mine = f"{self.weights} ({self.weights_sha256[:12]})"
            weights = [f"weights: {mine}, not {other.weights} ({other.weights_sha256[:12]})"]
        compared = ["kind", "prep", "output", "layout", "shard_size", "names"]
        compared += ["image_column", "format_version"]
        if self.compute_dtype and other.compute_dtype:
            compared.append("compute_dtype")
        lost = other.labels and not self.labels  # new pictures would have none
        labels = [f"labels: none, not {other.labels} (--class-folders)"] if lost else []
        return (
            weights
            + labels
            + [
                f"{name}: {_named(getattr(self, name))}, not {_named(getattr(other, name))}"
                for name in compared
                if getattr(self, name) != getattr(other, name)
            ]
        )


def _named(value: object) -> object:
    return "none" if value == "" else value


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

    Of two runs that begin together in an empty folder, one writes its record, and the other finds
    it. Stores cannot do that, and records are replaced with `overwrite`: see `check_record`.

    Args:
        destination: DEST, prepared.
        record: this run's settings.
        is_planned: whether a file name is an output of this run.
        overwrite: whether outputs with other settings may be replaced; those that the run would
            leave in place still stop it.

    Raises:
        StaeError: DEST belongs to a run with other settings.
    """
    existing = _compared(destination, record, overwrite)
    if existing is None:
        _refuse_strays(destination, record, is_planned, overwrite, renamed=False)
        if destination.create(NAME, _text(record)):
            return
        existing = _compared(destination, record, overwrite)
    differences = record.differences(existing) if existing else []
    if differences:  # another name of the same weights is not one
        renamed = existing is not None and existing.names != record.names
        _refuse_strays(destination, record, is_planned, overwrite, renamed=renamed)
    labelled = existing is None or record.labels == existing.labels
    if differences or not labelled or existing != read_record(destination):
        # None, of an earlier version, or without labels so far
        with destination.writing(NAME) as path:
            path.write_bytes(_text(record))


def check_record(destination: Destination, record: RunRecord) -> None:
    """Checks at the end of a run that no other one has changed the record meanwhile.

    Raises:
        StaeError: one did.
    """
    found = read_record(destination)
    differences = record.differences(found) if found else ["it was removed"]
    if differences:
        raise StaeError(
            f"another run wrote to `{destination.place()}` meanwhile ({'; '.join(differences)}), "
            "so its outputs are mixed",
            "run one of them again with `--overwrite`, while no other run uses DEST",
        )


def _compared(destination: Destination, record: RunRecord, overwrite: bool) -> RunRecord | None:
    """The record of DEST, with what earlier versions did not write in it."""
    existing = read_settings(destination)
    differences = record.differences(existing) if existing else []
    if differences and not overwrite:
        raise StaeError(
            f"`{destination.place()}` holds another run: {'; '.join(differences)}",
            "choose another DEST, or `--overwrite` to replace its outputs",
        )
    return existing


def _text(record: RunRecord) -> bytes:
    return json.dumps(asdict(record), indent=2).encode() + b"\n"


def read_settings(destination: Destination) -> RunRecord | None:
    """Like `read_record`; earlier versions recorded the dtype of computing in latents alone.

    Raises:
        StaeError: it cannot be read, or is damaged.
    """
    record = read_record(destination)
    if record is None or record.compute_dtype:
        return record
    found = (_made_with(destination.entry(name)) for name in destination.names())
    first = next((made for made in found if made and made.kind == record.kind), None)
    return replace(record, compute_dtype=first.compute_dtype if first else "")


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
    ours = _MadeWith(
        *(record.kind, record.weights_sha256, record.prep, record.output, record.layout),
        record.compute_dtype,
    )
    for name in destination.names():
        made_with = _made_with(destination.entry(name))
        if made_with is None or (overwrite and is_planned(name)):
            continue
        if not made_with.compute_dtype:
            made_with = made_with._replace(compute_dtype=ours.compute_dtype)
        if made_with == ours and not renamed:
            continue
        remedy = "choose another DEST" if overwrite else "choose another DEST, or `--overwrite`"
        raise StaeError(
            f"`{destination.place(name)}` was made with other weights or settings and would "
            "stay beside this run's",
            f"{remedy}; or move that file away",
        )


def _made_with(entry: Entry) -> _MadeWith | None:
    """The settings of an output of ours; None for any other file."""
    suffix = PurePosixPath(entry.key).suffix
    if suffix == LATENT_SUFFIX:
        return _latents_made_with(entry)
    if suffix.removeprefix(".") in get_args(PictureFormat) and isinstance(entry, FileEntry):
        return _picture_made_with(entry, suffix.removeprefix("."))
    return None


def _latents_made_with(entry: Entry) -> _MadeWith | None:
    try:
        first = stored_in(entry)[0]
    except InputError:
        return None
    info, layout = first.info, FILES if first.is_alone else SHARDS
    return _MadeWith(
        *("latents", info.weights_sha256, info.prep, first.dtype, layout), info.compute_dtype
    )


def _picture_made_with(entry: FileEntry, form: str) -> _MadeWith | None:
    picture = read_picture_record(entry.path)
    if picture is None:
        return None
    try:
        fingerprint = str(json.loads(picture)["weights_sha256"])
    except (ValueError, KeyError, TypeError):
        fingerprint = "unknown"
    return _MadeWith("pictures", fingerprint, NO_PREP, form, FILES)


def _damaged(place: str) -> StaeError:
    return StaeError(
        f"`{place}` is not a run record of stae", "choose another DEST, or delete that file"
    )

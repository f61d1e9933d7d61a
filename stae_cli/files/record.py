"""The run record, `DEST/stae.json`: what every output in DEST was made with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Set
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from stae_cli.errors import InputError, StaeError
from stae_cli.files.destination import Destination
from stae_cli.files.latents import SUFFIX as LATENT_SUFFIX
from stae_cli.files.latents import read_header
from stae_cli.files.pictures import PictureFormat, read_picture_record

NAME = "stae.json"
FORMAT_VERSION = "1"
NO_PREP = "{}"


@dataclass(frozen=True)
class RunRecord:
    """Settings that all outputs of one DEST share; a run with others is refused.

    `kind` is `latents` or `pictures`; `output` is the latents' dtype or the pictures' format.
    """

    kind: Literal["latents", "pictures"]
    weights: str
    weights_sha256: str
    prep: str
    output: str
    layout: str = "files"
    format_version: str = FORMAT_VERSION

    def differences(self, other: RunRecord) -> list[str]:
        """What differs from `other`, as `name: mine, not theirs`; weights count by fingerprint."""
        if self.weights_sha256 != other.weights_sha256:
            mine = f"{self.weights} ({self.weights_sha256[:12]})"
            weights = [f"weights: {mine}, not {other.weights} ({other.weights_sha256[:12]})"]
        else:
            weights = []
        compared = ("kind", "prep", "output", "layout", "format_version")
        return weights + [
            f"{name}: {getattr(self, name)}, not {getattr(other, name)}"
            for name in compared
            if getattr(self, name) != getattr(other, name)
        ]


def read_record(folder: Path) -> RunRecord | None:
    """The record of a DEST, or None when it has none.

    Raises:
        StaeError: there is one that cannot be understood.
    """
    path = folder / NAME
    try:
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StaeError(f"cannot read `{path}`: {error.strerror or error}") from error
    except ValueError as error:
        raise _damaged(path) from error
    known = {field.name for field in fields(RunRecord)}
    if not isinstance(values, dict) or not known <= values.keys():
        raise _damaged(path)
    return RunRecord(**{name: values[name] for name in known})


def settle_record(
    destination: Destination, record: RunRecord, *, outputs: Set[str], overwrite: bool
) -> None:
    """Makes sure that DEST holds only what this run's record describes, then writes the record.

    Args:
        destination: DEST, prepared.
        record: this run's settings.
        outputs: the names of everything that this run will write or find done.
        overwrite: whether outputs of other settings may be replaced; those that the run would
            leave in place still stop it.

    Raises:
        StaeError: DEST belongs to a run with other settings.
    """
    existing = read_record(destination.folder)
    differences = record.differences(existing) if existing else []
    if differences and not overwrite:
        raise StaeError(
            f"`{destination.folder}` holds another run: {'; '.join(differences)}",
            "choose another DEST, or `--overwrite` to replace its outputs",
        )
    if existing is None or differences:
        _refuse_strays(destination.folder, record, outputs, overwrite)
    if existing != record:
        with destination.writing(NAME) as path:
            path.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")


def _refuse_strays(folder: Path, record: RunRecord, outputs: Set[str], overwrite: bool) -> None:
    """Stops at an output of other settings that would stay, or that may not be replaced."""
    for path in _files(folder):
        made_with = _made_with(path)
        if made_with in (None, (record.kind, record.weights_sha256, record.prep, record.output)):
            continue
        if overwrite and path.relative_to(folder).as_posix() in outputs:
            continue
        remedy = "choose another DEST" if overwrite else "choose another DEST, or `--overwrite`"
        raise StaeError(
            f"`{path}` was made with other weights or settings and would stay beside this run's",
            f"{remedy}; or move that file away",
        )


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in sorted(names))


def _made_with(path: Path) -> tuple[str, str, str, str] | None:
    """Kind, fingerprint, prep and form of an output of ours; None for any other file."""
    if path.suffix == LATENT_SUFFIX:
        try:
            header = read_header(path)
        except InputError:
            return None
        return "latents", header.info.weights_sha256, header.info.prep, header.dtype
    form = path.suffix.removeprefix(".")
    if form not in get_args(PictureFormat):
        return None
    picture = read_picture_record(path)
    return None if picture is None else ("pictures", _fingerprint(picture), NO_PREP, form)


def _fingerprint(picture_record: str) -> str:
    try:
        return str(json.loads(picture_record)["weights_sha256"])
    except (ValueError, KeyError, TypeError):
        return "unknown"


def _damaged(path: Path) -> StaeError:
    return StaeError(
        f"`{path}` is no run record of stae", "choose another DEST, or delete that file"
    )

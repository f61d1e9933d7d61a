"""Notes: the caption and the label of a picture, from what lies beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from stae_cli.errors import InputError, UsageError

NO_LABEL, LARGEST_LABEL = -1, (1 << 31) - 1
CAPTIONS = ("caption", "prompt", "text")  # names of a caption in JSON, the first that is there
TEXTS = (".txt", ".caption")  # files that hold nothing but a caption
LABEL, JSON = ".cls", ".json"
SIDECARS = (*TEXTS, JSON, LABEL)
LONGEST_CAPTION = 64 << 10  # bytes
LARGEST_SIDECAR = 1 << 20  # bytes
METADATA = "metadata.jsonl"  # of Hugging Face's image folders, in any folder
DATASET = "dataset.json"  # of EDM and REPA, at the root


@dataclass(frozen=True, slots=True)
class Notes:
    """What is said of a picture: a caption, empty without one, and a class's number, or -1."""

    caption: str = ""
    label: int = NO_LABEL

    def over(self, other: Notes) -> Notes:
        """These notes, and of the others what they lack."""
        label = other.label if self.label == NO_LABEL else self.label
        return Notes(self.caption or other.caption, label)


NOTHING = Notes()


def stem_of(name: str) -> str:
    """A file's name, or its path, without the last suffix."""
    folder, slash, last = name.rpartition("/")
    stem, dot, _ = last.rpartition(".")
    return f"{folder}{slash}{stem}" if dot and stem else name


def parse_sidecars(sidecars: Mapping[str, bytes]) -> Notes:
    """The notes in the files beside a picture, by suffix.

    A text counts before JSON, and a number in `.cls` before one in JSON.

    Raises:
        InputError: one of them is damaged, or too long.
    """
    found = NOTHING
    for suffix, data in sidecars.items():
        if len(data) > LARGEST_SIDECAR:
            raise InputError(f"its {suffix} has more than {LARGEST_SIDECAR >> 20} MiB")
    for suffix in TEXTS:
        if suffix in sidecars:
            found = found.over(Notes(caption=_text(suffix, sidecars[suffix])))
    if LABEL in sidecars:
        found = found.over(Notes(label=_label(LABEL, _text(LABEL, sidecars[LABEL]))))
    if JSON in sidecars:
        found = found.over(_notes_in(JSON, _json(JSON, sidecars[JSON])))
    return found


def read_table(file: BinaryIO, *, place: str, prefix: str) -> Iterator[tuple[str, Notes]]:
    """The key and the notes of each picture in a METADATA or DATASET file.

    Args:
        file: at its beginning.
        place: of the file, which says what it is.
        prefix: of the keys of pictures in its folder, with a `/` at its end, or empty.

    Raises:
        UsageError: it is damaged.
    """
    rows = _rows_of_metadata(file) if place.endswith(METADATA) else _rows_of_dataset(file)
    number = 0
    try:
        for number, (name, notes) in enumerate(rows, 1):  # noqa: B007 (for the error)
            yield prefix + name.removeprefix("./"), notes
    except (InputError, ValueError) as error:
        reason = error.message if isinstance(error, InputError) else "it is not JSON"
        raise UsageError(
            f"`{place}`, after {number} pictures: {reason}",
            "fix it, or encode with `--no-captions`",
        ) from error


def class_labels(keys: Iterable[str], folders: Iterable[str]) -> dict[str, int]:
    """The number of each top-level folder: its place in the order of their names.

    Args:
        keys: of all pictures.
        folders: more top-level folders, which may be empty or unreadable, and count all the same.

    Raises:
        UsageError: a picture is in none.
    """
    names = set(folders)
    for key in keys:
        folder, slash, _ = key.partition("/")
        if not slash:
            raise UsageError(
                f"`{key}` is in no folder of the source, so `--class-folders` has no class for it",
                "move it into one, or give the folder that holds the classes",
            )
        names.add(folder)
    return {name: number for number, name in enumerate(sorted(names))}


def checked_caption(text: object, where: str) -> str:
    """A caption without blanks at its ends.

    Raises:
        InputError: it is not text, or too long.
    """
    if not isinstance(text, str):
        raise InputError(f"the caption in its {where} is not text")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InputError(f"the caption in its {where} is not Unicode") from error
    if size > LONGEST_CAPTION:
        raise InputError(f"the caption in its {where} has more than {LONGEST_CAPTION >> 10} KiB")
    return text.strip()


def checked_label(value: object, where: str) -> int:
    """A class's number.

    Raises:
        InputError: it is not one.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_LABEL:
        raise InputError(f"the label in its {where} is not the number of a class: {value!r:.40}")
    return value


def _rows_of_metadata(file: BinaryIO) -> Iterator[tuple[str, Notes]]:
    for line in file:
        row = json.loads(line.decode("utf-8-sig")) if line.strip() else None
        if isinstance(row, dict) and isinstance(row.get("file_name"), str):
            yield row["file_name"], _notes_in("row", row)


def _rows_of_dataset(file: BinaryIO) -> Iterator[tuple[str, Notes]]:
    """Only rows of a path and a number; EDM's format also has vectors."""
    table = json.load(file)
    labels = table.get("labels") if isinstance(table, dict) else None
    for row in labels if isinstance(labels, list) else ():
        if isinstance(row, list) and len(row) == 2 and isinstance(row[0], str):
            yield row[0], Notes(label=checked_label(row[1], "row"))


def _notes_in(where: str, value: Any) -> Notes:
    """The notes in a JSON object, which may hold much else; nothing in any other value."""
    if not isinstance(value, dict):
        return NOTHING
    name = next((name for name in CAPTIONS if value.get(name) is not None), None)
    caption = checked_caption(value[name], where) if name else ""
    label = value.get("label")
    if not isinstance(label, int) or isinstance(label, bool):  # a class's name, say
        return Notes(caption)
    return Notes(caption, checked_label(label, where))


def _text(suffix: str, data: bytes) -> str:
    try:
        return checked_caption(data.decode("utf-8-sig"), suffix)
    except UnicodeDecodeError as error:
        raise InputError(f"the caption in its {suffix} is not UTF-8") from error


def _json(suffix: str, data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"its {suffix} is not JSON") from error


def _label(suffix: str, text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 10:
        raise InputError(f"the label in its {suffix} is not the number of a class: {text!r:.40}")
    return checked_label(int(text), suffix)

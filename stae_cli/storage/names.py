"""Names: the output of each entry, which of them DEST confuses, and the keys it may have."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stae_cli.errors import InputError, UsageError
from stae_cli.storage.entry import Entry

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
KINDS_NAMED = 8
RESERVED = "__metadata__"  # reserved by safetensors
LONGEST_NAME = 255  # bytes, on most file systems
LONGEST_PART = 240  # bytes; outputs add a suffix
SAME_THERE = (
    "the file system of DEST takes these names for one; shards (`--shard-size 256`), object stores "
    "and most file systems on Linux do not"
)
LONGEST_KEY = 1024  # bytes, as on object stores; leaves most of a path of 4096 to DEST
DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]) *(\..*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class NameRules:
    """Which different names are one file in some place: by letter `case`, by Unicode `form`."""

    case: bool = False
    form: bool = False

    def same(self, name: str) -> str:
        """One spelling of all names that are the same file there."""
        if not self.form or name.isascii():
            return name.casefold() if self.case else name
        normal = unicodedata.normalize("NFC", name)
        return unicodedata.normalize("NFC", normal.casefold()) if self.case else normal


EXACT = NameRules()  # of keys in shards, of object stores, and of most file systems on Linux


@dataclass(frozen=True, slots=True)
class Planned:
    """An entry and its output, relative to DEST."""

    entry: Entry
    output: str


def plan_outputs(
    entries: Sequence[Entry],
    suffix: str,
    *,
    strip: str | None = None,
    keep_extension: bool = False,
    rules: NameRules = EXACT,
) -> list[Planned]:
    """Names each entry's output, and refuses two that would be the same file.

    Args:
        entries: the inputs.
        suffix: of the outputs, with its dot; empty if they are not files, so that none of them
            can be in the way of a folder.
        strip: the only suffix to drop from keys; by default the last one, whatever it is.
        keep_extension: drop nothing, so that `cat.jpg` and `cat.png` have different outputs.
        rules: of the place where the outputs will be.

    Raises:
        UsageError: two entries have one output, or an output would be the folder of another.
    """
    planned = [Planned(e, output_name(e.key, suffix, strip, keep_extension)) for e in entries]
    first: dict[str, Planned] = {}
    for plan in planned:
        other = first.setdefault(rules.same(plan.output), plan)
        if other is not plan:
            raise UsageError(
                f"`{other.entry.place}` and `{plan.entry.place}` would both write `{plan.output}`",
                collision_hint(other, plan, keep_extension),
            )
    if suffix:
        _refuse_folders(planned, first, rules)
    return planned


def _refuse_folders(
    planned: Sequence[Planned], by_output: Mapping[str, Planned], rules: NameRules
) -> None:
    for folder, inside in {plan.output.rpartition("/")[0]: plan for plan in planned}.items():
        part = rules.same(folder)
        while part:
            if (file := by_output.get(part)) is not None:
                raise UsageError(
                    f"`{file.entry.place}` would write `{file.output}`, which is a folder for "
                    f"`{inside.entry.place}`",
                    "rename one of them, or encode them into different DESTs",
                )
            part = part.rpartition("/")[0]


def output_name(key: str, suffix: str, strip: str | None, keep_extension: bool) -> str:
    """The output of a key; see `plan_outputs`."""
    if strip is not None:
        stem = key[: -len(strip)] if key.lower().endswith(strip) else key
    elif keep_extension:
        stem = key
    else:
        name = key.rpartition("/")[2]
        dot = name.rfind(".")  # as PurePath.stem does it, several times as fast
        stem = key[: dot - len(name)] if 0 < dot < len(name) - 1 else key
    return stem + suffix


def collision_hint(first: Planned, second: Planned, keep_extension: bool) -> str:
    """What to do about two entries with one output."""
    one, two = (NameRules(case=True, form=True).same(plan.entry.key) for plan in (first, second))
    if one != two and not keep_extension:
        return "`--keep-extension` names outputs like `cat.jpg.safetensors`"
    if first.output != second.output:
        return f"rename one of them: {SAME_THERE}"
    return "encode them into different DESTs, or give the folder above both as the one SOURCE"


def suffix_of(name: str) -> str:
    """The lowercase suffix that says what a file is: `.jpg`, `.tar.gz`; empty without one."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 (several times as fast)
    suffix = suffix.lower()
    return f".tar{suffix}" if suffix in COMPRESSED and stem.lower().endswith(".tar") else suffix


def check_key(key: str) -> None:
    """Checks that a key from an archive cannot lead out of DEST, on any system.

    Raises:
        InputError: it could.
    """
    if key == RESERVED or "\0" in key:
        raise InputError("its name is not a file name")
    if key.startswith("/") or "\\" in key or ":" in key:
        raise InputError("its name is an absolute path, or not portable")
    if len(_encoded(key)) > LONGEST_KEY:
        raise InputError(f"its name is longer than {LONGEST_KEY} bytes")
    for part in key.split("/"):
        if part in ("", ".", ".."):
            raise InputError("its name leads out of its folder")
        if DEVICES.fullmatch(part.rstrip(" .")):
            raise InputError("its name is that of a device")
        if len(_encoded(part)) > LONGEST_PART:
            raise InputError(f"its name is longer than {LONGEST_PART} bytes")


def problem_of(key: str) -> str | None:
    """Why a key cannot be an output's name; None if it can."""
    try:
        check_key(key)
    except InputError as error:
        return error.message
    return None


def is_too_long(output: str) -> bool:
    """Whether a part of an output's name is too long for file systems."""
    return any(len(os.fsencode(part)) > LONGEST_NAME for part in output.split("/"))


def _encoded(part: str) -> bytes:
    try:
        return part.encode()
    except UnicodeEncodeError as error:
        raise InputError("its name is not valid UTF-8") from error


def summary_of(passed_over: Counter[str]) -> str:
    """What was passed over in a few words: `9 other files: .heic 7, .txt 2`."""
    named = [f"{kind} {count}" for kind, count in passed_over.most_common(KINDS_NAMED)]
    if (more := len(passed_over) - KINDS_NAMED) > 0:
        named.append(f"{more} more kinds")
    total = passed_over.total()
    return f"{total} other {'file' if total == 1 else 'files'}: {', '.join(named)}"

"""Names of outputs: which one each entry leads to, and which may not share a folder."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stae_cli.errors import UsageError
from stae_cli.storage.entry import Entry


@dataclass(frozen=True, slots=True)
class Planned:
    """An entry and the output, relative to DEST, that it leads to."""

    entry: Entry
    output: str


def plan_outputs(
    entries: Sequence[Entry], suffix: str, *, strip: str | None = None, keep_extension: bool = False
) -> list[Planned]:
    """Names each entry's output, and refuses two that would be the same file.

    Args:
        entries: the inputs.
        suffix: of the outputs, with its dot.
        strip: the only suffix to drop from keys; by default the last one, whatever it is.
        keep_extension: drop nothing, so that `cat.jpg` and `cat.png` can live side by side.

    Raises:
        UsageError: two entries lead to one output (also where only case or Unicode form differ),
            or one output would be the folder of another.
    """
    planned = [Planned(e, output_name(e.key, suffix, strip, keep_extension)) for e in entries]
    first: dict[str, Planned] = {}
    for plan in planned:
        other = first.setdefault(folded(plan.output), plan)
        if other is not plan:
            raise UsageError(
                f"`{other.entry.place}` and `{plan.entry.place}` would both write `{plan.output}`",
                _collision_hint(other, plan, keep_extension),
            )
    _refuse_folders(planned, first)
    return planned


def _refuse_folders(planned: Sequence[Planned], by_output: Mapping[str, Planned]) -> None:
    for folder, inside in {plan.output.rpartition("/")[0]: plan for plan in planned}.items():
        part = folded(folder)
        while part:
            if (file := by_output.get(part)) is not None:
                raise UsageError(
                    f"`{file.entry.place}` would write `{file.output}`, which is a folder for "
                    f"`{inside.entry.place}`",
                    "rename one of them, or encode them into different DESTs",
                )
            part = part.rpartition("/")[0]


def output_name(key: str, suffix: str, strip: str | None, keep_extension: bool) -> str:
    """The output of one key; see `plan_outputs`."""
    if strip is not None:
        stem = key[: -len(strip)] if key.lower().endswith(strip) else key
    elif keep_extension:
        stem = key
    else:
        name = key.rpartition("/")[2]
        dot = name.rfind(".")  # as PurePath.stem does it, several times as fast
        stem = key[: dot - len(name)] if 0 < dot < len(name) - 1 else key
    return stem + suffix


def folded(output: str) -> str:
    """The same for names that some file system takes for one: letter case, Unicode forms."""
    return (
        output.casefold() if output.isascii() else unicodedata.normalize("NFC", output).casefold()
    )


def _collision_hint(first: Planned, second: Planned, keep_extension: bool) -> str:
    if first.entry.key != second.entry.key and not keep_extension:
        return "`--keep-extension` names outputs like `cat.jpg.safetensors`"
    return "encode them into different DESTs, or give the folder above both as the one SOURCE"

"""Which options of `stae bench` go with what it measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from stae_cli.errors import UsageError

PLAIN, PATH, LOOP = "", "--path", "--loop"
USED_BY: Mapping[str, Sequence[str]] = {
    "--size": (PLAIN, LOOP),
    "--batch": (PLAIN, LOOP),
    "--seconds": (PLAIN, LOOP),
    "--against": (PLAIN,),
    "--plot": (PLAIN,),
    "--transformer": (LOOP,),
    "--workers": (PATH,),
}


def check_options(given: Iterable[str], mode: str) -> None:
    """Checks that all options that were given have something to say.

    Raises:
        UsageError: one would be ignored.
    """
    for option in given:
        users = USED_BY.get(option, (mode,))
        if mode in users:
            continue
        if mode == PLAIN:
            raise UsageError(f"`{option}` is for `{users[0]}`", "add that, or leave it away")
        raise UsageError(f"`{option}` does not go with `{mode}`", "leave one of them away")

"""Latents with each other's names: their pictures would be decoded, or trained on, as another's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

from stae_cli.storage.names import output_name

Item = TypeVar("Item")

LONGEST_SOURCE = 4096  # a system's longest path; nothing has the name of a longer one


class _Renamed(NamedTuple):
    """A latent whose name is not that of its source.

    `moved` is how its folder differs, if only that does: parts of a DEST are read, and DESTs inside
    other folders.
    """

    key: str
    source: str
    moved: str | None


class Exchanged(Generic[Item]):
    """Finds latents that have the name of another one's source; other renamed ones are allowed."""

    def __init__(self) -> None:
        self._renamed: list[tuple[Item, _Renamed]] = []

    def add(self, item: Item, key: str, source: str) -> None:
        """Adds a latent with its key and its recorded source."""
        if key not in _names(source) and len(source) <= LONGEST_SOURCE:
            self._renamed.append((item, _Renamed(key, source, _moved(key, source))))

    def found(self) -> Iterator[tuple[Item, str]]:
        """The latents with another's name, each with the reason not to use it."""
        claims: dict[str, list[_Renamed]] = {}
        for _, latent in self._renamed:
            for name in _names(latent.source):
                claims.setdefault(name, []).append(latent)
        ends = {
            end: (claim.source, name)
            for name, claimed in claims.items()
            for claim in claimed
            if claim.moved is None
            for end in _ends(name)
        }
        for item, latent in self._renamed:
            owner = _owner(latent, claims, ends)
            if owner is not None:
                yield (
                    item,
                    f"its name is that of `{owner}`, but it was made from `{latent.source}`; "
                    "rename it",
                )


def _owner(
    latent: _Renamed, claims: dict[str, list[_Renamed]], ends: dict[str, tuple[str, str]]
) -> str | None:
    """The source whose latent should have the name of this one, if its own has another."""
    for claim in claims.get(latent.key, ()):
        if claim.moved is None or claim.moved != latent.moved:
            return claim.source
    if latent.moved is not None:
        return None
    if latent.key in ends:
        return ends[latent.key][0]
    for end in _ends(latent.key):
        if end in ends and ends[end][1] == end:
            return ends[end][0]
    return None


def _names(source: str) -> tuple[str, str]:
    """The keys that `encode` gives to the latent of a source."""
    return source, output_name(source, "", None, False)


def _moved(key: str, source: str) -> str | None:
    for name in _names(source):
        if name.endswith(f"/{key}"):
            return f"out of {name[: -len(key)]}"
        if key.endswith(f"/{name}"):
            return f"into {key[: -len(name)]}"
    return None


def _ends(path: str) -> Iterator[str]:
    """The path, and what is left of it without its first folders."""
    while path:
        yield path
        path = path.partition("/")[2]

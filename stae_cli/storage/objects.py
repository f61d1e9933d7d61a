"""Objects: the inputs below a URL, and their keys."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from stae_cli.errors import InputError, UsageError
from stae_cli.storage.entry import Problem
from stae_cli.storage.fsspec_store import Store, is_url, state_of, store_at, unreachable
from stae_cli.storage.keys import check_key
from stae_cli.storage.remote_entry import RemoteEntry


def list_objects(
    url: str, dest: Path | str | None, *, suffixes: Collection[str], passes: Callable[[str], bool]
) -> Iterator[RemoteEntry | Problem | None]:
    """What lies below a URL, in name order; None for each object that is passed over.

    A URL of one object gives that one, whatever its suffix.

    Args:
        url: an object, or what the names of objects begin with, as a folder.
        dest: where results will go, if anywhere; it must not lie inside.
        suffixes: lowercase suffixes, with the dot, to take from folders.
        passes: whether objects with a part of this name are left out.

    Raises:
        UsageError: nothing is there, or DEST lies inside.
        StaeError: the store cannot be reached.
    """
    store = store_at(url)
    try:
        if store.kind() == "file":
            folder, _, name = store.root.rpartition("/")
            above = Store(store.url.rpartition("/")[0], store.fs, folder)
            yield RemoteEntry(name, above, name, above.state(name))
            return
        _refuse_inside(store, dest)
        for name, info in store.objects():
            if not any(map(passes, _parts(name))):
                yield _entry(store, name, info, suffixes)
    except FileNotFoundError as error:
        raise UsageError(f"nothing is there: `{url}`", "check the URL") from error
    except OSError as error:
        raise unreachable(url, error) from error


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".", "..")]


def _entry(
    store: Store, name: str, info: dict[str, Any], suffixes: Collection[str]
) -> RemoteEntry | Problem | None:
    if PurePosixPath(name).suffix.lower() not in suffixes:
        return None
    try:
        check_key(name)
        return RemoteEntry(name, store, name, state_of(info))
    except InputError as error:
        return Problem(name, error.message)


def _refuse_inside(store: Store, dest: Path | str | None) -> None:
    if not isinstance(dest, str) or not is_url(dest):
        return
    other = store_at(dest)
    if type(other.fs) is type(store.fs) and f"{other.root}/".startswith(f"{store.root}/"):
        raise UsageError(
            f"DEST `{dest}` lies inside SOURCE `{store.url}`", "choose a DEST outside of it"
        )

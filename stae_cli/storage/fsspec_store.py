"""Stores: objects below a URL (`s3://`, `gs://`, `hf://`, `memory://`), through fsspec."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stae_cli.errors import InputError, StaeError, UsageError
from stae_cli.storage.entry import SourceState

_log = logging.getLogger(__name__)

URL = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]+)://")  # two letters: `C:` is a drive
TAGS = (
    *("ETag", "etag", "blob_id"),
    *("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "modified", "created"),
)
# What the packages behind fsspec raise besides OSError; looked up only once they are imported.
FOREIGN = (
    ("builtins", "ValueError"),  # for names that a store cannot have
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("huggingface_hub.errors", "HfHubHTTPError"),
    ("huggingface_hub.errors", "HFValidationError"),
    ("httpx", "HTTPError"),
    ("httpx2", "HTTPError"),  # of newer huggingface_hub
)
ACCESS = (
    "for private or gated repositories, `hf auth login` or set HF_TOKEN, and accept the terms on "
    "the repository's page"
)
INSTALL = "`pip install 'stae[remote]'` is enough for S3; other stores need the package named here"


def is_url(where: Path | str) -> bool:
    """Whether this is a location on a store, not a local path."""
    return isinstance(where, str) and URL.match(where) is not None


@dataclass(frozen=True)
class Store:
    """The objects at and below a URL; `root` is its path as fsspec spells it."""

    url: str
    fs: Any
    root: str

    def path(self, name: str = "") -> str:
        """What fsspec calls the object `name`, or the root itself."""
        return f"{self.root}/{name}" if name else self.root

    def place(self, name: str = "") -> str:
        """The URL of the object `name`, for messages."""
        return f"{self.url}/{name}" if name else self.url

    def kind(self) -> str:
        """`file` or `directory`.

        Raises:
            FileNotFoundError: nothing is there.
            OSError: the store cannot be reached.
        """
        with translated():
            return str(self.fs.info(self.root)["type"])

    def state(self, name: str = "") -> SourceState:
        """The current state of an object; raises what `kind` raises."""
        _log.debug("looking up `%s`", self.place(name))
        with translated():
            found = self.fs.info(self.path(name))
        if found["type"] != "file":
            raise FileNotFoundError(f"`{self.place(name)}` is a folder")
        return state_of(found)

    def objects(self) -> list[tuple[str, dict[str, Any]]]:
        """The names of all objects below the root, sorted, each with its listed details."""
        _log.debug("listing `%s`", self.url)
        with translated():
            found = self.fs.find(self.root, detail=True)
        start = f"{self.root}/"
        return sorted(
            (path.removeprefix(start), info)
            for path, info in found.items()
            if path.startswith(start) and info["type"] == "file" and not path.endswith("/")
        )

    def top_names(self) -> list[str]:
        """The names of the objects directly in the root."""
        try:
            with translated():
                found = self.fs.ls(self.root, detail=True)
        except FileNotFoundError:  # a folder exists only once something is in it
            return []
        return sorted(info["name"].rpartition("/")[2] for info in found if info["type"] == "file")

    def read(self, name: str, begin: int | None = None, end: int | None = None) -> bytes:
        """The bytes of an object from `begin` up to `end`, by default all."""
        _log.debug("reading `%s`, bytes %s to %s", self.place(name), begin, end)
        with translated():
            return bytes(
                self.fs.cat_file(self.path(name), start=begin, end=end, **_exactly(self.fs))
            )

    def put(self, local: Path, name: str) -> None:
        """Uploads a file as an object, which appears whole."""
        _log.debug("writing `%s`", self.place(name))
        with translated():
            self.fs.put_file(str(local), self.path(name))

    def remove(self, name: str) -> None:
        """Removes an object, if it exists."""
        _log.debug("removing `%s`", self.place(name))
        with suppress(FileNotFoundError), translated():
            self.fs.rm_file(self.path(name))


def store_at(url: str) -> Store:
    """The store of a URL; makes no request yet.

    Raises:
        UsageError: there is no such kind of store.
        StaeError: a package is missing, or the store cannot be set up.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise StaeError(f"`{url}` needs fsspec", INSTALL) from error
    try:
        with translated():
            # Cached listings would hide what other processes change.
            fs, root = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise StaeError(f"cannot read `{url}`: {error}", INSTALL) from error
    except OSError as error:
        if isinstance(error.__cause__, ValueError):
            raise UsageError(f"cannot use `{url}`: {reason_of(error)}", "check the URL") from error
        raise unreachable(url, error) from error
    return Store(url.rstrip("/"), fs, root.rstrip("/"))


def state_of(found: dict[str, Any]) -> SourceState:
    """The state of an object as its store lists it: size, and a tag that changes with it.

    Raises:
        InputError: the store reports no size, or nothing that would change with the object.
    """
    tag = next((_text(found[name]) for name in TAGS if found.get(name)), "")
    if not tag or type(found.get("size")) is not int:
        lack = "neither an ETag nor a time" if not tag else "no size"
        raise InputError(
            f"its store reports {lack}, so changes would go unseen; download it and give the file"
        )
    return SourceState(found["size"], etag=tag)


def _text(tag: object) -> str:
    """A tag as text, the same from a listing and from a request for one object."""
    if isinstance(tag, datetime):
        tag = (tag if tag.tzinfo else tag.replace(tzinfo=UTC)).timestamp()
    return str(tag).strip('"')


def _exactly(fs: Any) -> dict[str, str]:
    """How to read a range of an object and no more: fsspec's own way reads megabytes ahead."""
    from fsspec import AbstractFileSystem

    inherited = getattr(fs.cat_file, "__func__", None) is AbstractFileSystem.cat_file
    return {"cache_type": "none"} if inherited else {}


def absent(url: str) -> UsageError:
    """The error to raise when a store says that nothing is at a URL."""
    if not url.startswith("hf://"):
        return UsageError(f"nothing is there: `{url}`", "check the URL")
    return UsageError(f"nothing is there, or it is private: `{url}`", f"check the URL; {ACCESS}")


def unreachable(place: str, error: OSError) -> StaeError:
    """The error to raise when a store refuses or does not answer."""
    return StaeError(
        f"cannot reach `{place}`: {reason_of(error)}",
        "check the name, the credentials and the network; fsspec's own settings apply",
    )


@contextmanager
def reaching(place: str, *, ignore: type[OSError] | tuple[()] = ()) -> Iterator[None]:
    """Raises errors in its block, except those to `ignore`, as `unreachable` gives them."""
    try:
        yield
    except ignore:
        raise
    except OSError as error:
        raise unreachable(place, error) from error


def reason_of(error: OSError) -> str:
    """An error of a store as one line."""
    return " ".join((error.strerror or str(error) or type(error).__name__).split())


@contextmanager
def translated() -> Iterator[None]:
    """Turns what the packages behind fsspec raise into OSError."""
    try:
        yield
    except foreign_errors() as error:
        if type(error).__name__ == "GatedRepoError":
            raise OSError(f"access to this repository is not granted: {ACCESS}") from error
        if isinstance(error, OSError):
            raise
        raise OSError(f"{error}") from error


def foreign_errors() -> tuple[type[BaseException], ...]:
    """The errors of those packages that are imported."""
    kinds = (getattr(sys.modules.get(module), name, None) for module, name in FOREIGN)
    return tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception))

"""Names of checkpoints: what `--weights` takes, and where to find each one.

    builtin                        the newest checkpoint that ships with the package
    photo-2, ...                   one that ships, by its permanent name
    stupidae                       the published one, from the Hugging Face hub
    hf://OWNER/REPO/FILE[@REV]     any file on the hub
    FILE                           a .safetensors, .pt or .pth file

huggingface_hub does the downloading, so its cache, `HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE` and
`HF_ENDPOINT` work as usual.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stae_cli.errors import CheckpointError, UsageError

PICKLE_SUFFIXES = (".pt", ".pth")
SAFETENSORS_SUFFIX = ".safetensors"

DEFAULT_WEIGHTS = "stupidae"
BUILTIN_FOLDER = Path(__file__).parents[1] / "weights"
BUILTIN_NAMES = ("photo-2",)  # permanent, oldest first

HUB_HINT = (
    "use `--weights builtin`, which needs no network, or give the file itself: `--weights FILE`"
)


@dataclass(frozen=True)
class HubFile:
    """One file of one repository on the Hugging Face hub."""

    repository: str
    file: str
    revision: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repository}/{self.file}{revision}"


PUBLISHED = HubFile("Muinez/StupidAE", "smol_f8c16.pt")


@dataclass(frozen=True)
class Located:
    """A checkpoint's file, and the permanent name recorded in latents made with it."""

    name: str
    path: Path


def locate(spec: str, *, hint: str = HUB_HINT) -> Located:
    """Finds what `--weights` names; downloads a hub file if it is not cached.

    Only `stae weights fetch` checks the hub for updates, so that a run neither waits for the
    network nor silently uses newer weights than the last one did.

    Args:
        spec: the name.
        hint: shown when the hub cannot be reached.

    Raises:
        UsageError: a malformed `hf://` name.
        CheckpointError: unknown, or the hub does not have it or cannot be reached.
    """
    if (builtin := builtin_file(spec)) is not None:
        return Located(builtin.stem, builtin)
    if (hub_file := hub_file_of(spec)) is not None:
        path = cached(hub_file) or fetch(hub_file, hint=hint)
        return Located(_permanent_name(spec, hub_file, path), path)
    return _locate_file(spec)


def locate_recorded(name: str) -> Located | None:
    """Finds the checkpoint a latent names if it is built in, published or cached, else None.

    A latent may name anything: a path or an uncached hub file is never opened or downloaded.
    """
    if name == DEFAULT_WEIGHTS or builtin_file(name) is not None:
        return locate(name)
    if not name.startswith("hf://"):
        return None
    try:
        path = cached(parse_hub_file(name))
    except UsageError:
        return None
    return None if path is None else Located(name, path)


def locate_available() -> Iterator[Located]:
    """The checkpoints that are here already: built in, or published and cached."""
    for name in reversed(BUILTIN_NAMES):
        yield locate(name)
    if (path := cached(PUBLISHED)) is not None:
        yield Located(DEFAULT_WEIGHTS, path)


def builtin_file(name: str) -> Path | None:
    """The file of a built-in checkpoint, or None if `name` is not one."""
    permanent = BUILTIN_NAMES[-1] if name == "builtin" else name
    if permanent not in BUILTIN_NAMES:
        return None
    return BUILTIN_FOLDER / f"{permanent}{SAFETENSORS_SUFFIX}"


def hub_file_of(spec: str) -> HubFile | None:
    """The hub file that a name stands for, or None if it names a local file.

    Raises:
        UsageError: a malformed `hf://` name.
    """
    if spec == DEFAULT_WEIGHTS:
        return PUBLISHED
    return parse_hub_file(spec) if spec.startswith("hf://") else None


def parse_hub_file(spec: str) -> HubFile:
    """Parses `hf://OWNER/REPO/FILE[@REVISION]`; FILE may contain folders.

    Raises:
        UsageError: it has another form.
    """
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)/([^@]+?)(?:@([^@]+))?", spec)
    if match is None or ".." in match[2].split("/"):
        raise UsageError(
            f"malformed checkpoint name `{spec}`", "write hf://OWNER/REPO/FILE or .../FILE@REVISION"
        )
    return HubFile(match[1], match[2], match[3])


def cached(hub_file: HubFile) -> Path | None:
    """The hub file's path in the local cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        hub_file.repository, hub_file.file, revision=hub_file.revision or "main"
    )
    return Path(found) if isinstance(found, str) else None


def fetch(hub_file: HubFile, *, hint: str = HUB_HINT) -> Path:
    """Downloads a hub file if it is new, and returns its path in the cache.

    `hint` is shown when the hub cannot be reached.

    Raises:
        CheckpointError: it does not exist, is private, or the hub cannot be reached.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        HTTPError,  # from whichever HTTP library the hub client uses
        LocalEntryNotFoundError,  # how the hub client says that it could not connect
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = hub_file.repository, hub_file.file
    try:
        # The download would retry an unreachable hub for half a minute: ask first.
        get_hf_file_metadata(hf_hub_url(*where, revision=hub_file.revision))
        return Path(hf_hub_download(*where, revision=hub_file.revision))
    except GatedRepoError as error:
        raise CheckpointError(
            f"`{hub_file}` is gated", "accept its terms on the hub and set HF_TOKEN"
        ) from error
    except LocalEntryNotFoundError as error:
        raise _unfetched(hub_file, error, hint) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
        what = type(error).__name__.removesuffix("NotFoundError").removeprefix("Remote").lower()
        raise CheckpointError(
            f"the hub does not have that {what}: `{hub_file}`",
            "check the name; private ones need HF_TOKEN",
        ) from error
    except HFValidationError as error:
        raise UsageError(f"malformed checkpoint name `{hub_file}`: {error}") from error
    except (HTTPError, OSError) as error:
        raise _unfetched(hub_file, error, hint) from error


def _unfetched(hub_file: HubFile, error: BaseException, hint: str) -> CheckpointError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return CheckpointError(f"`{hub_file}` is not cached and cannot be fetched: {reason}", hint)


def _locate_file(spec: str) -> Located:
    if "://" in spec:
        raise CheckpointError(
            f"checkpoints are not read from `{spec}`", "fetch the file yourself, or use hf://"
        )
    path = Path(os.path.expanduser(spec))  # noqa: PTH111 (expanduser of Path fails for unknown users)
    absent = not spec or _is_absent(path)
    if absent and path.suffix.lower() not in (*PICKLE_SUFFIXES, SAFETENSORS_SUFFIX):
        raise CheckpointError(
            f"unknown checkpoint `{spec}`",
            f"name one of builtin, {', '.join(BUILTIN_NAMES)}, {DEFAULT_WEIGHTS}, "
            "hf://OWNER/REPO/FILE, or a .safetensors, .pt or .pth file",
        )
    if absent:
        raise CheckpointError(f"no checkpoint file `{spec}`", "check the path")
    return Located(path.name, path)


def _is_absent(path: Path) -> bool:
    """Whether nothing is there; reading reports what is there but unreadable."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return True
    except OSError:
        return False
    return False


def _permanent_name(spec: str, hub_file: HubFile, path: Path) -> str:
    """`stupidae`, or the hub name with the downloaded commit, as the cache's layout shows it."""
    if spec == DEFAULT_WEIGHTS:
        return spec
    parts = path.parts
    if "snapshots" not in parts:
        return str(hub_file)
    commit = parts[parts.index("snapshots") + 1]
    return str(HubFile(hub_file.repository, hub_file.file, commit))

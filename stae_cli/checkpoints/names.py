"""Names of checkpoints: what `--weights` takes, and where each is found.

    builtin                        the newest checkpoint that ships with the package
    photo-2, ...                   one that ships, by its permanent name
    stupidae                       the published one, from the Hugging Face hub
    hf://OWNER/REPO/FILE[@REV]     any file on the hub
    FILE                           a .safetensors, .pt or .pth file

The hub is huggingface_hub's business: its cache, `HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE` and
`HF_ENDPOINT` mean what they mean elsewhere.
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
    """A checkpoint's file, and the permanent name that latents made with it record."""

    name: str
    path: Path


def locate(spec: str, *, hint: str = HUB_HINT) -> Located:
    """Finds what `--weights` names; a hub file is fetched when it is not cached.

    The hub is asked for news only by `stae weights fetch`, so that a run neither waits for the
    network nor meets other weights than the last one without being told to.

    Args:
        spec: the name.
        hint: what to do when the hub cannot be reached.

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
    """Finds a checkpoint that a latent names: built in, published or already cached, else None.

    A latent may hold any text: a path or an uncached hub file is never opened or fetched.
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


def at_hand() -> Iterator[Located]:
    """The checkpoints that need no network, whatever they are called elsewhere."""
    for name in reversed(BUILTIN_NAMES):
        yield locate(name)
    if (path := cached(PUBLISHED)) is not None:
        yield Located(DEFAULT_WEIGHTS, path)


def builtin_file(name: str) -> Path | None:
    """The file of a built-in checkpoint, or None when `name` is no such."""
    permanent = BUILTIN_NAMES[-1] if name == "builtin" else name
    if permanent not in BUILTIN_NAMES:
        return None
    return BUILTIN_FOLDER / f"{permanent}{SAFETENSORS_SUFFIX}"


def hub_file_of(spec: str) -> HubFile | None:
    """The hub file that a name stands for, or None when it stands for a local one.

    Raises:
        UsageError: a malformed `hf://` name.
    """
    if spec == DEFAULT_WEIGHTS:
        return PUBLISHED
    return parse_hub_file(spec) if spec.startswith("hf://") else None


def parse_hub_file(spec: str) -> HubFile:
    """`hf://OWNER/REPO/FILE[@REVISION]` in its parts; FILE may hold folders.

    Raises:
        UsageError: it is not of that form.
    """
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)/([^@]+?)(?:@([^@]+))?", spec)
    if match is None or ".." in match[2].split("/"):
        raise UsageError(
            f"malformed checkpoint name `{spec}`", "write hf://OWNER/REPO/FILE or .../FILE@REVISION"
        )
    return HubFile(match[1], match[2], match[3])


def cached(hub_file: HubFile) -> Path | None:
    """Where the hub file lies in the local cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        hub_file.repository, hub_file.file, revision=hub_file.revision or "main"
    )
    return Path(found) if isinstance(found, str) else None


def fetch(hub_file: HubFile, *, hint: str = HUB_HINT) -> Path:
    """The local copy of a hub file as the hub has it now; downloaded only if that is new.

    `hint` says what to do when the hub cannot be reached.

    Raises:
        CheckpointError: it does not exist, is private, or the hub cannot be reached.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        HTTPError,  # of whichever HTTP library the hub client uses
        LocalEntryNotFoundError,  # how the hub client says that it could not connect
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = hub_file.repository, hub_file.file
    try:
        # Asked first because the download retries an unreachable hub for half a minute.
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
            f"the hub has no such {what}: `{hub_file}`",
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
    path = Path(os.path.expanduser(spec))  # noqa: PTH111 (which fails where there is no such user)
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
    """Whether nothing is there; what is there and cannot be read, its reader names."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return True
    except OSError:
        return False
    return False


def _permanent_name(spec: str, hub_file: HubFile, path: Path) -> str:
    """`stupidae`, or the hub name at the commit that was fetched, read off the cache's layout."""
    if spec == DEFAULT_WEIGHTS:
        return spec
    parts = path.parts
    if "snapshots" not in parts:
        return str(hub_file)
    commit = parts[parts.index("snapshots") + 1]
    return str(HubFile(hub_file.repository, hub_file.file, commit))

"""Uploading to the Hugging Face hub: in commits of some files, so that a second try continues."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from stae_cli._version import __version__
from stae_cli.errors import StaeError, UsageError
from stae_cli.latents.format import SUFFIX
from stae_cli.publishing.card import NAME as CARD
from stae_cli.publishing.card import card_of
from stae_cli.publishing.plan import PushPlan

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

URL = re.compile(r"hf://(?:datasets/)?([\w.-]+/[\w.-]+)/?")
COMMIT_FILES = 1000
COMMIT_BYTES = 4 << 30
TOGETHER = 8  # files between two steps of the progress bar
CONTINUE = "run the same command again to continue where it stopped"
TOKEN = "`hf auth login`, or set HF_TOKEN to a token that may write to this repository"  # noqa: S105


@dataclass(frozen=True)
class Pushed:
    """What is on the hub now; `private` is whether only its owner sees it."""

    repository: str
    url: str
    private: bool
    has_new_card: bool


def parse_repository(url: str) -> str:
    """The repository `OWNER/NAME` of `hf://OWNER/NAME` or `hf://datasets/OWNER/NAME`.

    Raises:
        UsageError: the URL has another form.
    """
    match = URL.fullmatch(url)
    if match is None or match[1].startswith(("datasets/", "models/", "spaces/")):
        raise UsageError(f"`{url}` is not a dataset on the hub", "write hf://OWNER/NAME")
    return match[1]


def push(
    plan: PushPlan, repository: str, *, private: bool | None, advance: Callable[[int], None]
) -> Pushed:
    """Uploads the files of a plan to a dataset, which is created if it does not exist.

    The records come last: without `stae.json`, an upload has not finished. Files that the
    repository has already are not sent again.

    Args:
        plan: what to upload.
        repository: `OWNER/NAME`.
        private: whether only its owner sees it; by default a new one is private, and another
            stays what it is.
        advance: called with the bytes uploaded, or found there.

    Raises:
        StaeError: the hub refuses or does not answer, or has latents that are not in the plan.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils.logging import set_verbosity_error
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if get_token() is None:
        raise StaeError("the hub needs a token to upload", TOKEN)
    disable_progress_bars()  # ours shows all files as one
    set_verbosity_error()  # type: ignore[no-untyped-call]
    api = HfApi(library_name="stae", library_version=__version__)
    with translated(repository):
        is_private = _prepare(api, repository, private)
        there = set(api.list_repo_files(repository, repo_type="dataset"))
        _refuse_others(plan, repository, there)
        for names in batches(plan.latents, plan.sizes):
            _commit(api, repository, _additions(plan, names), plan, advance)
        last = _additions(plan, plan.records)
        if CARD not in there:
            last.append(_addition(CARD, card_of(plan, repository).encode()))
        _commit(api, repository, last, plan, advance)
        url = f"{api.endpoint}/datasets/{repository}"
    return Pushed(repository, url, is_private, CARD not in there)


def batches(names: Sequence[str], sizes: dict[str, int]) -> Iterator[list[str]]:
    """The files of each commit, in their order."""
    batch, held = list[str](), 0
    for name in names:
        if batch and (len(batch) == COMMIT_FILES or held + sizes[name] > COMMIT_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(name)
        held += sizes[name]
    if batch:
        yield batch


def _prepare(api: HfApi, repository: str, private: bool | None) -> bool:
    """Creates the dataset if it does not exist; whether it is private."""
    if not api.repo_exists(repository, repo_type="dataset"):
        private = private is not False
        api.create_repo(repository, repo_type="dataset", private=private)
    found = bool(api.dataset_info(repository).private)
    if private is not None and found is not private:
        kinds = {True: "private", False: "public"}
        raise StaeError(
            f"`{repository}` is {kinds[found]}",
            f"omit `--{kinds[private]}`, or change it in the settings of the repository",
        )
    return found


def _refuse_others(plan: PushPlan, repository: str, there: set[str]) -> None:
    """Refuses a repository with other latents, which would mix with these."""
    others = sorted(name for name in there - set(plan.latents) if name.endswith(SUFFIX))
    if others:
        raise StaeError(
            f"`{repository}` has {len(others)} files of latents that `{plan.folder}` does not "
            f"have, such as `{others[0]}`",
            "delete them there, or push to another repository",
        )


def _additions(plan: PushPlan, names: Sequence[str]) -> list[CommitOperationAdd]:
    return [_addition(name, plan.folder / name) for name in names]


def _commit(
    api: HfApi,
    repository: str,
    additions: Sequence[CommitOperationAdd],
    plan: PushPlan,
    advance: Callable[[int], None],
) -> None:
    """Uploads some files, and commits those that are new or have changed."""
    remaining = iter(additions)
    while some := list(islice(remaining, TOGETHER)):
        api.preupload_lfs_files(repository, additions=some, repo_type="dataset", free_memory=False)
        advance(sum(plan.sizes.get(addition.path_in_repo, 0) for addition in some))
    api.create_commit(
        repository,
        additions,
        commit_message=f"Upload {len(additions)} files with stae",
        repo_type="dataset",
    )


def _addition(name: str, content: Path | bytes) -> CommitOperationAdd:
    """A file of a commit; computes its hash."""
    from huggingface_hub import CommitOperationAdd

    return CommitOperationAdd(name, content)


@contextmanager
def translated(repository: str) -> Iterator[None]:
    """Turns the errors of the hub's client into messages.

    Raises:
        StaeError: one occurred.
    """
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,  # from whichever HTTP library the client uses
    )

    try:
        yield
    except HFValidationError as error:
        reason = f"`{repository}` cannot be a repository: {_reason(error)}"
        raise UsageError(reason, "choose another name") from error
    except HfHubHTTPError as error:
        raise _refused(repository, error.response.status_code, error) from error
    except (HTTPError, OSError) as error:
        reason = f"cannot upload to `{repository}`: {_reason(error)}"
        raise StaeError(reason, f"check the network, then {CONTINUE}") from error


def _refused(repository: str, status: int, error: Exception) -> StaeError:
    if status == 401:
        return StaeError(f"the hub refuses the token for `{repository}`", TOKEN)
    if status == 403:
        return StaeError(f"the token may not write to `{repository}`", TOKEN)
    if status == 404:
        return StaeError(
            f"the hub does not have `{repository}` any more", "check its name, and the token"
        )
    if status == 429:
        return StaeError("the hub asks for a pause: too many requests", f"later, {CONTINUE}")
    return StaeError(f"the hub refuses the upload to `{repository}`: {_reason(error)}", CONTINUE)


def _reason(error: Exception) -> str:
    """An error of the client as one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__

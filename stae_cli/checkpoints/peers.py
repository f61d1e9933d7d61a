"""Other autoencoders: folders in the layout of diffusers, which the library diffusers loads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from stae_cli.errors import CheckpointError, StaeError, UsageError

CONFIG = "config.json"
INSIDE = "vae"  # where pipelines have theirs
HALF = "fp16"  # a variant that a folder may have alone
NAMED = 3  # tensors in a message
UPGRADE = "run `pip install --upgrade 'stae[peers]'`"
AGAIN = "download it again, or check its files"


def diffusers() -> ModuleType:
    """The library, which is slow to import: only when it is needed.

    Raises:
        StaeError: it is not installed, or too old.
    """
    try:
        return import_module("diffusers")
    except ModuleNotFoundError as error:
        raise StaeError(
            "comparing with other networks needs diffusers", "run `pip install 'stae[peers]'`"
        ) from error
    except (ImportError, RuntimeError) as error:
        raise StaeError(
            f"diffusers is installed but cannot be imported: {error}", UPGRADE
        ) from error


def class_in(folder: Path) -> str:
    """The name of the class that a folder says it holds, without importing anything.

    Raises:
        UsageError: it is not a folder.
        CheckpointError: it is not one of diffusers.
    """
    if not folder.is_dir():
        what = f"`{folder}` is a file" if folder.exists() else f"no folder `{folder}`"
        raise UsageError(what, "give a local folder, such as `hf download --local-dir` makes")
    path = _place(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"`{folder}` has no {CONFIG}, so it is not a folder of diffusers",
            "give a folder such as `save_pretrained` writes, or a pipeline's",
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"`{path}` cannot be read: {error}", AGAIN) from error
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if not isinstance(kind, str):
        raise CheckpointError(f"`{path}` does not name a class (`_class_name`)", AGAIN)
    return kind


def load_peer(folder: Path) -> nn.Module:
    """The autoencoder in a folder, in float32 on the CPU, in evaluation mode.

    Code in the folder is never run.

    Args:
        folder: has a `config.json` and weights, or is a pipeline's, which has them in `vae`.

    Raises:
        UsageError: it is not a folder.
        CheckpointError: it holds no autoencoder that diffusers can load, or not all its weights.
        StaeError: diffusers is not installed.
    """
    kind = class_in(folder)
    library = diffusers()
    try:
        found = getattr(library, kind, None)
        usable = all(hasattr(found, name) for name in ("encode", "decode", "from_pretrained"))
    except (ImportError, RuntimeError) as error:  # of a class that needs more libraries
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"`{folder}`: {kind} cannot be imported: {reason}") from error
    if not usable:
        raise CheckpointError(
            f"`{folder}` holds a {kind}, which is not an autoencoder of diffusers", _hint(kind)
        )
    model = _loaded(found, folder)
    return model.float().eval().requires_grad_(False)


def _loaded(found: Any, folder: Path) -> nn.Module:
    place = _place(folder)
    try:
        with _silent():
            model, report = found.from_pretrained(
                place,
                local_files_only=True,
                low_cpu_mem_usage=False,
                use_safetensors=any(place.glob("*.safetensors*")),
                variant=_variant(place),
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"`{folder}` cannot be loaded: {reason}", AGAIN) from error
    # Else diffusers leaves what is missing at random, and goes on.
    for what in ("missing", "mismatched", "unexpected"):
        if names := sorted(map(str, report[f"{what}_keys"])):
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            listed = ", ".join(names[:NAMED]) + more
            raise CheckpointError(f"the weights in `{folder}` do not fit: {what} {listed}", AGAIN)
    loaded: nn.Module = model
    return loaded


def _variant(place: Path) -> str | None:
    names = [path.name for path in place.glob("*.safetensors*")]
    return HALF if names and all(f".{HALF}." in name for name in names) else None


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps diffusers from printing bars and warnings: what matters is checked here."""
    log = import_module("diffusers.utils.logging")
    before = log.get_verbosity()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(before)
        log.enable_progress_bar()


def _place(folder: Path) -> Path:
    return folder if (folder / CONFIG).is_file() else folder / INSIDE


def _hint(kind: str) -> str:
    if kind == "AutoencoderStupid":
        return "give the checkpoint that the folder was made from: `--weights`"
    return f"is diffusers up to date? {UPGRADE}"

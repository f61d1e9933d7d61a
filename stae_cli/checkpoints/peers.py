"""Other autoencoders: folders in the layout of diffusers, which the library diffusers loads."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType

from torch import nn

from stae_cli.errors import CheckpointError, StaeError

CONFIG = "config.json"
INSIDE = "vae"  # where pipelines have theirs


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
            f"diffusers is installed but cannot be imported: {error}",
            "run `pip install --upgrade 'stae[peers]'`",
        ) from error


def load_peer(folder: Path) -> nn.Module:
    """The autoencoder in a folder, in float32 on the CPU, in evaluation mode.

    Code in the folder is never run.

    Args:
        folder: has a `config.json` and weights, or is a pipeline's, which has them in `vae`.

    Raises:
        CheckpointError: it holds no autoencoder that diffusers can load.
        StaeError: diffusers is not installed.
    """
    place = folder if (folder / CONFIG).is_file() else folder / INSIDE
    kind = _class_in(place, folder)
    try:
        found = getattr(diffusers(), kind, None)
    except (ImportError, RuntimeError) as error:  # a class whose own imports fail
        raise CheckpointError(f"`{folder}`: {kind} cannot be imported: {error}") from error
    if found is None or not all(hasattr(found, name) for name in ("encode", "decode")):
        raise CheckpointError(
            f"`{folder}` holds a {kind}, which is not an autoencoder of diffusers", _hint(kind)
        )
    try:
        model: nn.Module = found.from_pretrained(
            place, local_files_only=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"`{folder}` cannot be loaded: {reason}", "download it again, or check its files"
        ) from error
    return model.float().eval().requires_grad_(False)


def _class_in(place: Path, folder: Path) -> str:
    try:
        config = json.loads((place / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"`{folder}` has no {CONFIG}, so it is not a folder of diffusers",
            "give a folder such as `save_pretrained` writes, or a pipeline's",
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"`{place / CONFIG}` cannot be read: {error}") from error
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if not isinstance(kind, str):
        raise CheckpointError(f"`{place / CONFIG}` does not name a class (`_class_name`)")
    return kind


def _hint(kind: str) -> str:
    if kind == "AutoencoderStupid":
        return "give the checkpoint that the folder was made from: `--weights`"
    return "is diffusers up to date? `pip install --upgrade 'stae[peers]'`"

"""`stae weights`: the available checkpoints, what they hold, and converting them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stae_cli.checkpoints.names import (
    BUILTIN_NAMES,
    DEFAULT_WEIGHTS,
    PUBLISHED,
    builtin_file,
    cached,
    fetch,
    hub_file_of,
    locate,
)
from stae_cli.cli import options as opt
from stae_cli.cli.console import print_fact, print_json, print_line, print_note, print_table
from stae_cli.errors import UsageError

if TYPE_CHECKING:
    from stae_cli.checkpoints.checkpoint import Checkpoint

weights = typer.Typer(
    help="List, show, fetch and convert checkpoints.", no_args_is_help=True, rich_markup_mode=None
)

HUB_HINT = "use `builtin`, which needs no network, or a file"
HISTORY = ("recipe", "data", "training", "validation", "latents")  # metadata in chronological order

StoredDtype = Literal["keep", "float16", "bfloat16", "float32"]

Name = Annotated[str, typer.Argument(metavar="NAME", help="What --weights takes.")]


@weights.command("list")
def list_weights(as_json: opt.AsJson = False, verbose: opt.Verbose = False) -> None:
    """List the checkpoints that can be named without a path."""
    rows = _listed()
    if as_json:
        print_json({name: {"where": where, "path": path} for name, where, path in rows})
        return
    print_table("checkpoints", ("name", "where"), [(name, where) for name, where, _ in rows])


@weights.command("show")
def show_weights(name: Name, as_json: opt.AsJson = False, verbose: opt.Verbose = False) -> None:
    """Show a checkpoint's fingerprint, architecture, size and metadata."""
    facts = _facts(_load(name))
    if as_json:
        print_json(facts)
        return
    metadata = facts.pop("metadata")
    known = [key for key in HISTORY if key in metadata]
    others = sorted(metadata.keys() - facts.keys() - set(known))
    for key, value in (facts | {key: metadata[key] for key in [*known, *others]}).items():
        print_fact(f"{key.replace('_', ' ')}: {_in_words(value)}")


@weights.command("fetch")
def fetch_weights(name: Name, verbose: opt.Verbose = False) -> None:
    """Fetch the newest version of a checkpoint from the hub, check it, and print its path."""
    from stae_cli.checkpoints.checkpoint import read_checkpoint

    hub_file = hub_file_of(name)
    path = locate(name).path if hub_file is None else fetch(hub_file, hint=HUB_HINT)
    read_checkpoint(path, name=name)
    print_line(str(path))


@weights.command("convert")
def convert_weights(
    name: Name,
    target: Annotated[Path, typer.Argument(metavar="FILE", help="The .safetensors to write.")],
    dtype: Annotated[StoredDtype, typer.Option(help="Store the tensors in this dtype.")] = "keep",
    linear: Annotated[
        bool,
        typer.Option("--linear", help="Store the encoder as matrices (out, in) of linear layers."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
    verbose: opt.Verbose = False,
) -> None:
    """Write a checkpoint as safetensors: safe to open, and with the same fingerprint.

    With --linear the encoder's tensors fit plain linear layers on patches, which take images of
    mixed aspect ratios in one batch; stae reads such files as the same checkpoint.
    """
    import torch

    from stae_cli.checkpoints.checkpoint import write_checkpoint
    from stae_cli.checkpoints.tensor_files import LAYOUT_KEY, LINEAR, to_linear

    if target.suffix != ".safetensors":
        raise UsageError(f"`{target}` does not end in .safetensors", "give a name that does")
    if target.exists() and not overwrite:
        raise UsageError(f"`{target}` exists", "give another name, or `--overwrite`")
    if not target.parent.is_dir():
        raise UsageError(f"no folder `{target.parent}`", "create it first, or give another path")
    checkpoint = _load(name)
    tensors = dict(checkpoint.tensors)
    if dtype != "keep":
        tensors = checkpoint.cast(getattr(torch, dtype))
    metadata = dict(checkpoint.metadata)
    if linear:
        tensors, metadata[LAYOUT_KEY] = to_linear(tensors), LINEAR
    write_checkpoint(target, tensors, checkpoint.architecture, metadata)
    print_note(f"wrote {target}")


def _load(name: str) -> Checkpoint:
    """The checkpoint that an argument, not `--weights`, names."""
    from stae_cli.checkpoints.checkpoint import read_checkpoint

    located = locate(name, hint=HUB_HINT)
    return read_checkpoint(located.path, name=located.name)


def _listed() -> list[tuple[str, str, str | None]]:
    """The name, the origin and the path, if there is one, of each checkpoint."""
    ours = dict.fromkeys(BUILTIN_NAMES, "ships with stae")
    ours[BUILTIN_NAMES[-1]] += ", `builtin`"
    path = cached(PUBLISHED)
    where = f"{PUBLISHED}, {'cached' if path else 'not fetched yet'}"
    return [
        *((name, where, str(builtin_file(name))) for name, where in ours.items()),
        (DEFAULT_WEIGHTS, where, str(path) if path else None),
    ]


def _in_words(value: Any) -> str:
    """An object as `name figure, ...`; anything else unchanged."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{key.replace('_', ' ')} {_figures(each)}" for key, each in value.items())


def _figures(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _parsed(text: str) -> Any:
    """Metadata that holds a JSON object as that object; anything else unchanged."""
    try:
        value = json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _refused(constant: str) -> None:
    """Refuses NaN and infinity, which JSON does not have."""
    raise ValueError(constant)


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    from stae_cli.codec.device import dtype_name

    return {
        "name": checkpoint.name,
        "fingerprint": checkpoint.fingerprint,
        "architecture": checkpoint.architecture.describe(),
        "parameters": checkpoint.parameters,
        "dtype": dtype_name(checkpoint.dtype),
        "metadata": {key: _parsed(text) for key, text in checkpoint.metadata.items()},
    }

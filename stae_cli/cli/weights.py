"""`stae weights`: the available checkpoints, what they hold, and converting them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
from stae_cli.cli.console import (
    print_fact,
    print_json,
    print_line,
    print_note,
    print_table,
    print_warning,
)
from stae_cli.errors import UsageError

if TYPE_CHECKING:
    from stae_cli.checkpoints.checkpoint import Checkpoint

weights = typer.Typer(
    help="List, show, fetch and convert checkpoints.", no_args_is_help=True, rich_markup_mode=None
)

HUB_HINT = "use `builtin`, which needs no network, or a file"
CONVERTED = {  # names of files in folders that `convert` writes
    *("config.json", "diffusion_pytorch_model.safetensors", "stupidae_diffusers.py", "README.md"),
    *("encoder.onnx", "decoder.onnx"),
}

Target = Literal["safetensors", "diffusers", "onnx"]
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
    from stae_cli.checkpoints.card import card, in_words

    facts = card(_load(name))
    if as_json:
        print_json(facts)
        return
    for what, text in in_words(facts):
        print_fact(f"{what}: {text}")


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
    target: Annotated[
        Path,
        typer.Argument(metavar="TARGET", help="The .safetensors, or else the folder, to write."),
    ],
    to: Annotated[
        Target, typer.Option("--to", help="A file for stae, or a folder for other programs.")
    ] = "safetensors",
    dtype: Annotated[StoredDtype, typer.Option(help="Store the tensors in this dtype.")] = "keep",
    linear: Annotated[
        bool,
        typer.Option("--linear", help="Store the encoder as matrices (out, in) of linear layers."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace TARGET.")] = False,
    verbose: opt.Verbose = False,
) -> None:
    """Write a checkpoint as safetensors, or for diffusers or ONNX runtimes.

    A .safetensors is safe to open, and has the same fingerprint. With --linear its encoder's
    tensors fit plain linear layers on patches, which take images of mixed aspect ratios in one
    batch; stae reads such files as the same checkpoint.
    """
    if to == "safetensors":
        _check_file(target, overwrite=overwrite)
        _write_safetensors(_load(name), target, dtype, linear=linear)
    else:
        if linear:
            raise UsageError("`--linear` is for safetensors", "omit it, or `--to`")
        if to == "onnx" and dtype == "bfloat16":
            raise UsageError("ONNX runtimes compute in float32 or float16", "choose one of them")
        _check_folder(target, overwrite=overwrite)
        _write_folder(_load(name), target, to, dtype)
    print_note(f"wrote {target}")


def _check_file(target: Path, *, overwrite: bool) -> None:
    if target.suffix != ".safetensors":
        raise UsageError(f"`{target}` does not end in .safetensors", "give a name that does")
    if target.exists() and not overwrite:
        raise UsageError(f"`{target}` exists", "give another name, or `--overwrite`")
    if not target.parent.is_dir():
        raise UsageError(f"no folder `{target.parent}`", "create it first, or give another path")


def _check_folder(target: Path, *, overwrite: bool) -> None:
    """Refuses a folder with files that are not those of an earlier conversion."""
    from stae_cli.storage.whole_folder import contents

    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise UsageError(f"`{target}` is a file", "give a folder")
    found = {path.name for path in contents(target)}
    if found - CONVERTED:
        raise UsageError(f"`{target}` holds other files", "give an empty folder")
    if found and not overwrite:
        raise UsageError(f"`{target}` exists", "give another folder, or `--overwrite`")


def _write_safetensors(
    checkpoint: Checkpoint, target: Path, dtype: StoredDtype, *, linear: bool
) -> None:
    import torch

    from stae_cli.checkpoints.checkpoint import write_checkpoint
    from stae_cli.checkpoints.tensor_files import LAYOUT_KEY, LINEAR, to_linear

    tensors = dict(checkpoint.tensors)
    if dtype != "keep":
        tensors = checkpoint.cast(getattr(torch, dtype))
    metadata = dict(checkpoint.metadata)
    if linear:
        tensors, metadata[LAYOUT_KEY] = to_linear(tensors), LINEAR
    write_checkpoint(target, tensors, checkpoint.architecture, metadata)


def _write_folder(checkpoint: Checkpoint, target: Path, to: Target, dtype: StoredDtype) -> None:
    import torch

    from stae_cli.storage.whole_folder import appearing

    wanted = None if dtype == "keep" else getattr(torch, dtype)
    with appearing(target) as folder:
        if to == "diffusers":
            from stae_cli.checkpoints.diffusers import write_diffusers

            write_diffusers(checkpoint, folder, dtype=wanted)
            return
        from stae_cli.checkpoints.onnx import check_onnx, export_onnx

        model, wanted = checkpoint.model(), wanted or torch.float32
        about = {"weights": checkpoint.name, "weights_sha256": checkpoint.fingerprint}
        export_onnx(model, folder, about, dtype=wanted)
        apart = check_onnx(model, folder, wanted)
    if apart is None:
        print_warning("onnxruntime is not installed, so the files were not checked")
    else:
        print_note(f"onnxruntime computes the same numbers to {apart:.1e}")


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

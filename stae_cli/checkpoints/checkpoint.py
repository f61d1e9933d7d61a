"""Checkpoints: loading, checking and writing a network's weights."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from stae_cli.checkpoints.names import locate, locate_available, locate_recorded
from stae_cli.checkpoints.tensor_files import (
    check_numbers,
    fingerprint,
    from_linear,
    read_tensors,
    write_safetensors,
)
from stae_cli.errors import CheckpointError
from stae_cli.network.architecture import F8C16, PRESETS, Architecture, parse_architecture
from stae_cli.network.stupid_ae import StupidAE

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Weights as stored, with the name and fingerprint that latents record."""

    name: str
    fingerprint: str
    architecture: Architecture
    tensors: Mapping[str, Tensor] = field(repr=False)
    metadata: Mapping[str, str]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the stored tensors (of the first one, should they differ)."""
        return next(iter(self.tensors.values())).dtype

    @property
    def parameters(self) -> int:
        """How many weights the checkpoint holds."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def cast(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors in a dtype.

        Raises:
            CheckpointError: a weight is too large for it.
        """
        largest, cast = torch.finfo(dtype).max, {}
        for name, tensor in self.tensors.items():
            cast[name] = tensor.to(dtype)
            if torch.finfo(tensor.dtype).max > largest and not cast[name].isfinite().all():
                raise CheckpointError(
                    f"`{self.name}` has numbers in `{name}` that are too large for "
                    f"{str(dtype).removeprefix('torch.')}",
                    "give another checkpoint, or a wider dtype",
                )
        return cast

    def model(self) -> StupidAE:
        """A float32 reference model with these weights, in evaluation mode, on the CPU.

        Raises:
            CheckpointError: a weight is too large for float32.
        """
        with torch.device("meta"):
            model = StupidAE(self.architecture)
        model.load_state_dict(self.cast(torch.float32), strict=True, assign=True)
        model.scaling = _scaling(self.metadata)
        return model.requires_grad_(True).eval()


def load_checkpoint(name: str) -> Checkpoint:
    """Finds a checkpoint by what `--weights` takes, downloads it if needed, reads and checks it.

    Raises:
        UsageError: a malformed `hf://` name.
        CheckpointError: unknown, unreachable, damaged, or not a StupidAE.
    """
    located = locate(name)
    return read_checkpoint(located.path, name=located.name)


def load_model(name: str | os.PathLike[str]) -> StupidAE:
    """A StupidAE with the weights of a checkpoint, in float32 on the CPU, in evaluation mode.

    Args:
        name: what `--weights` takes: `stupidae` (the published weights), `builtin`, the path of a
            `.safetensors`, `.pt` or `.pth` file, or `hf://OWNER/REPO/FILE[@REVISION]`.

    Returns:
        An `nn.Module` to train, export or inspect; `Codec(model)` runs it fast.

    Raises:
        UsageError: a malformed `hf://` name.
        CheckpointError: unknown, unreachable, damaged, or not a StupidAE.

    Example:
        >>> from stae_cli import load_model
        >>> model = load_model("builtin")
        >>> sum(parameter.numel() for parameter in model.parameters())
        13243539
    """
    return load_checkpoint(os.fspath(name)).model()


def find_by_fingerprint(
    fingerprint: str, *, name: str, architecture: str, asked: str | None = None
) -> Checkpoint:
    """The checkpoint that latents were made with.

    It is the one that the user asks for, else the one that the latents name, else any that is
    built in or cached and has the fingerprint. Latents may hold any text as a name: a path or a
    hub file that is not cached is never opened or downloaded.

    Args:
        fingerprint: of the checkpoint, as the latents record it.
        name: likewise.
        architecture: likewise, for the message.
        asked: what `--weights` says, if anything.

    Raises:
        UsageError: `asked` is a malformed `hf://` name.
        CheckpointError: it is not available, or has another fingerprint.
    """
    if asked is not None:
        checkpoint = load_checkpoint(asked)
        if checkpoint.fingerprint != fingerprint:
            raise _other_checkpoint(checkpoint, fingerprint, name, architecture)
        return checkpoint
    located = locate_recorded(name)
    if located is None:
        return _available_with(fingerprint, name)
    checkpoint = read_checkpoint(located.path, name=located.name)
    if checkpoint.fingerprint != fingerprint:
        raise CheckpointError(
            f"the latents name `{name}`, but were made with other weights "
            f"({fingerprint[:12]}, not {checkpoint.fingerprint[:12]})",
            "give the checkpoint they were made with: `--weights`",
        )
    return checkpoint


def _available_with(fingerprint: str, name: str) -> Checkpoint:
    for located in locate_available():
        with suppress(CheckpointError):  # a damaged cache is not what was asked for
            checkpoint = read_checkpoint(located.path, name=located.name)
            if checkpoint.fingerprint == fingerprint:
                return checkpoint
    raise CheckpointError(
        f"the latents were made with `{name}`, which is not available here",
        "give its checkpoint with `--weights`",
    )


def _other_checkpoint(
    given: Checkpoint, fingerprint: str, name: str, architecture: str
) -> CheckpointError:
    wanted, found = fingerprint[:12], given.fingerprint[:12]
    if not given.architecture.is_named(architecture):
        wanted += f", {architecture}"
        found += f", {given.architecture.describe()}"
    return CheckpointError(
        f"the latents were made with `{name}` ({wanted}), not with `{given.name}` ({found})",
        "give the checkpoint they were made with, or omit `--weights`",
    )


def check_architecture(checkpoint: Checkpoint, wanted: Architecture) -> None:
    """Checks that a checkpoint is of the network that was asked for.

    Raises:
        CheckpointError: it is another network's.
    """
    if not checkpoint.architecture.is_like(wanted):
        raise CheckpointError(
            f"`{checkpoint.name}` is a {checkpoint.architecture.name}, not a {wanted.name}",
            "give a checkpoint of that network, or omit `--architecture`",
        )


def read_checkpoint(path: Path, *, name: str) -> Checkpoint:
    """Reads and checks a `.safetensors`, `.pt` or `.pth` checkpoint.

    Args:
        path: the file. Pickles are loaded with `weights_only=True` and nothing else.
        name: what latents made with it will record.

    Raises:
        CheckpointError: absent, unreadable, unsafe, or not a StupidAE (wrong tensors are listed).
    """
    tensors, metadata = read_tensors(path)
    architecture = parse_architecture(metadata.get("architecture", F8C16.name))
    if architecture.blocks > len(tensors):  # before a huge network is built
        raise CheckpointError(
            f"`{path}` holds {len(tensors)} tensors, too few for a network of "
            f"{architecture.blocks} blocks",
            "give a whole checkpoint, or `--weights builtin`",
        )
    expected = _shapes(architecture)
    tensors = from_linear(tensors, metadata, expected)
    _check_tensors(tensors, expected, architecture, path)
    check_numbers(tensors, path)
    # After the checks: an expanded tensor can claim any size in a small file.
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    checkpoint = Checkpoint(name, fingerprint(tensors), architecture, tensors, metadata)
    _log.info("checkpoint %s, fingerprint %s, from %s", name, checkpoint.fingerprint[:12], path)
    return checkpoint


def write_checkpoint(
    path: Path,
    tensors: Mapping[str, Tensor],
    architecture: Architecture,
    metadata: Mapping[str, str],
) -> None:
    """Writes a safetensors checkpoint atomically.

    Raises:
        CheckpointError: the file cannot be written.
    """
    write_safetensors(path, tensors, {**metadata, "architecture": architecture.describe()})


def _scaling(metadata: Mapping[str, str]) -> tuple[float, float] | None:
    """Shift and scale of the latents, None where the metadata has no valid ones."""
    try:
        latents = json.loads(metadata["latents"])
        shift, scale = float(latents["shift"]), float(latents["scale"])
    except (KeyError, TypeError, ValueError):
        return None
    return (shift, scale) if math.isfinite(shift) and 0 < scale < math.inf else None


def _shapes(architecture: Architecture) -> dict[str, Tensor]:
    """The network's tensors, on the meta device."""
    with torch.device("meta"):
        return StupidAE(architecture).state_dict()


def _check_tensors(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    architecture: Architecture,
    path: Path,
) -> None:
    problems = [
        *_listed("missing", sorted(expected.keys() - tensors.keys())),
        *_listed("unexpected", sorted(tensors.keys() - expected.keys())),
        *_listed("wrong shape", _misshapen(tensors, expected)),
    ]
    if problems:
        what = f"`{path}` is not a StupidAE {architecture.name}: {'; '.join(problems)}"
        raise CheckpointError(what, _remedy(tensors))


def _remedy(tensors: Mapping[str, Tensor]) -> str:
    """The hint for tensors that do not fit: they may be another network's."""
    stages = {name.split(".")[1] for name in tensors if name.startswith(("encoder.", "decoder."))}
    if stages == {"1"}:
        return "it is a second stage without its first: give the file that holds both"
    for preset in PRESETS.values():
        shapes = _shapes(preset)
        if shapes.keys() == tensors.keys() and not _misshapen(tensors, shapes):
            return (
                f"its tensors are those of a {preset.name}: store them as .safetensors with "
                f"`architecture`: `{preset.name}` in the metadata"
            )
    return "give a checkpoint of this network, or `--weights builtin`"


def _misshapen(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name].shape
    ]


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"{what} {', '.join(names[:3])}{more}"]

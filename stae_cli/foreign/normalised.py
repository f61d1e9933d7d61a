"""Normalised latents: how the values of a trainer become raw latents again."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stae_cli.errors import InputError, UsageError
from stae_cli.latents.format import Latent
from stae_cli.latents.safetensors_header import read_tensors
from stae_cli.scaling import per_channel
from stae_cli.signatures import LONGEST, SAFETENSORS, kind_of

LARGEST_TEXT = 16 << 20  # bytes; `stae stats --json` writes about 10,000, and a line per failure
HEADER_LIMIT = 1 << 20  # bytes, of a checkpoint
BEFORE_TEXT = b"\xef\xbb\xbf\xff\xfe \r\n\t"  # marks of UTF-8 and UTF-16, as PowerShell writes them
HINT = (
    "give what `stae stats --json` prints, a `latents_stats.pt`, or a checkpoint that records its "
    "latents"
)


@dataclass(frozen=True)
class Undo:
    """z * factor + shift, for all channels or for each: values of a trainer to raw latents.

    `weights_sha256` is the fingerprint of the checkpoint whose latents these are statistics of,
    empty if that is not known.
    """

    factor: tuple[float, ...] = (1.0,)
    shift: tuple[float, ...] = (0.0,)
    weights_sha256: str = field(default="", compare=False)

    @property
    def is_nothing(self) -> bool:
        """Whether values stay as they are."""
        return self == Undo()

    @property
    def identity(self) -> str:
        """Tells one from another, in the record of a picture; empty where values stay."""
        if self.is_nothing:
            return ""
        text = json.dumps([self.factor, self.shift])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def check(self, channels: int, where: str) -> None:
        """Checks that it is for latents of that many channels.

        Raises:
            UsageError: it has numbers for another count.
        """
        try:
            for values in (self.factor, self.shift):
                per_channel(values, where, channels)
        except ValueError as error:
            raise UsageError(str(error), "give the statistics of this network's latents") from error

    def apply(self, latent: Latent) -> Latent:
        """Raw latents (C, h, w): as they are if nothing is undone, else float32."""
        if self.is_nothing:
            return latent
        factor, shift = (
            np.array(values, np.float32).reshape(-1, 1, 1) for values in (self.factor, self.shift)
        )
        with np.errstate(over="ignore", invalid="ignore"):  # not finite ones are refused later
            raw: Latent = latent.astype(np.float32) * factor + shift
        return raw


def undo_of(stats: os.PathLike[str] | str | None, shift: float | None, scale: float | None) -> Undo:
    """What the options ask for: z * std + mean, or z / scale + shift.

    Raises:
        UsageError: options that contradict each other, or a file without statistics.
    """
    if stats is None:
        if scale is not None and not (math.isfinite(scale) and scale):
            raise UsageError(f"`--scale {scale}` is not allowed", "give a number other than 0")
        if shift is not None and not math.isfinite(shift):
            raise UsageError(f"`--shift {shift}` is not allowed", "give a finite number")
        return Undo((1 / (1.0 if scale is None else scale),), (shift or 0.0,))
    if shift is not None or scale is not None:
        raise UsageError(
            "`--stats` is instead of `--shift` and `--scale`", "give the one that was trained with"
        )
    return read_statistics(Path(stats))


def read_statistics(path: Path) -> Undo:
    """Mean and deviation of each channel, from a file that `HINT` lists.

    Raises:
        UsageError: the file is absent or damaged, or holds none.
    """
    try:
        found = _found_in(path)
        mean, std = (found[name] for name in ("mean", "std"))
        channels = _count(std)
        undo = Undo(
            per_channel(std, "std", channels),
            per_channel(mean, "mean", channels),
            str(found.get("weights_sha256", "")),
        )
    except FileNotFoundError as error:
        raise UsageError(f"no such file: `{path}`", HINT) from error
    except OSError as error:
        raise UsageError(f"cannot read `{path}`: {error.strerror or error}", HINT) from error
    except InputError as error:
        raise UsageError(f"`{path}` holds no statistics of latents: {error.message}", HINT) from (
            error
        )
    except LookupError as error:
        raise UsageError(f"`{path}` holds no `mean` and `std` of latents", HINT) from error
    except ValueError as error:
        raise UsageError(f"`{path}`: {error}", HINT) from error
    if min(undo.factor) < 0:
        raise UsageError(f"`{path}` has a negative `std`", HINT)
    return undo


def _count(values: Any) -> int:
    if hasattr(values, "numel"):
        return int(values.numel())
    return len(values) if isinstance(values, list) else 1


def _found_in(path: Path) -> Mapping[str, Any]:
    if path.exists() and not path.is_file():  # opening a pipe would block
        raise InputError("it is a folder or a special file")
    with path.open("rb") as file:
        head = file.read(LONGEST)
        size = path.stat().st_size
        file.seek(0)
        if head.lstrip(BEFORE_TEXT).startswith(b"{"):
            if size > LARGEST_TEXT:
                raise InputError("it is too long")
            return _object(file.read())
        if (kind := kind_of(head)) == SAFETENSORS:
            return statistics_in(read_tensors(file, size, limit=HEADER_LIMIT)[1])
    from stae_cli.foreign.pickled import LEGACY, load_safely

    if not head.startswith((b"PK", LEGACY)):
        raise InputError(f"it is {kind or 'neither JSON nor a file of tensors'}")
    found = load_safely(path)
    if not isinstance(found, dict):
        raise InputError(f"it holds a {type(found).__name__}")
    return found


def statistics_in(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """What a checkpoint's metadata record of its latents.

    Raises:
        InputError: nothing, or damaged.
    """
    if "latents" not in metadata:
        raise InputError("its metadata do not record any")
    return _object(metadata["latents"])


def _object(text: str | bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError("it is not valid JSON") from error
    if not isinstance(found, dict):
        raise InputError("it is not a JSON object")
    return found

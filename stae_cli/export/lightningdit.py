"""LightningDiT's files: safetensors of some thousand latents each, with flips and labels.

Its dataset opens every safetensors file of a folder, and normalises by the statistics beside them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stae_cli.errors import StaeError
from stae_cli.export.format import (
    About,
    Format,
    Normalize,
    refuse_sizes,
    refuse_unlabelled,
    refuse_without_flips,
)
from stae_cli.export.samples import Samples

WHAT = "LightningDiT"
CODES = {"float16": "F16", "float32": "F32"}


class LightningDiT(Format):
    """`latents_rank00_shard000.safetensors`, ...: `latents`, `latents_flip` and `labels`."""

    statistics = True

    def check(self, samples: Samples, normalize: Normalize) -> None:
        refuse_sizes(samples, WHAT)
        refuse_unlabelled(samples, WHAT)
        refuse_without_flips(samples, WHAT)
        if normalize != "none":
            raise StaeError(
                "LightningDiT normalises by itself, with the statistics that are exported",
                "omit `--normalize`",
            )

    def write(self, samples: Samples, folder: Path, per_file: int, about: About) -> Iterator[int]:
        labels = samples.labels.astype("<i8")
        for number, begin in enumerate(range(0, len(samples), per_file)):
            part = range(begin, min(begin + per_file, len(samples)))
            path = folder / f"latents_rank00_shard{number:03}.safetensors"
            yield from _write(path, samples, part, labels[part.start : part.stop].tobytes())


def _write(path: Path, samples: Samples, part: range, labels: bytes) -> Iterator[int]:
    """One file, in the order of its tensors, so that no more than a latent is in memory."""
    dtype = np.dtype(samples.dtype)
    (shape,) = samples.shapes
    size = len(part) * int(np.prod(shape)) * dtype.itemsize
    tensors = {
        "latents": (CODES[dtype.name], [len(part), *shape], size),
        "latents_flip": (CODES[dtype.name], [len(part), *shape], size),
        "labels": ("I64", [len(part)], len(labels)),
    }
    about = {"total_size": str(len(part)), "dtype": f"torch.{dtype.name}", "device": "cpu"}
    with path.open("wb") as file:
        file.write(_header(tensors, about))
        for flipped in (False, True):
            for number in part:
                latent = samples.latent(number, flipped=flipped)
                file.write(latent.astype(dtype.newbyteorder("<"), copy=False).tobytes())
                if flipped:
                    yield 1
        file.write(labels)


def _header(tensors: dict[str, tuple[str, list[int], int]], about: dict[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": about}
    begin = 0
    for name, (code, shape, size) in tensors.items():
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [begin, begin + size]}
        begin += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text

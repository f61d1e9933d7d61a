"""Shards: the latents of many pictures in one safetensors file, each a tensor named by its key.

A latent of a mirrored picture follows that of the picture, named by the key and `//flip`.
The metadata hold what all pictures have in common as in files of one latent, and in `pictures` a
JSON object from key to the rest.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stae_cli.errors import InputError, StaeError
from stae_cli.latents.format import (
    FLIPPED_SUFFIX,
    FORMAT_VERSION,
    StoredLatent,
    check_format,
    checked_latent,
)
from stae_cli.latents.info import Data, check_seal, parse_info
from stae_cli.latents.safetensors_header import header_bytes, json_object, json_text
from stae_cli.storage.entry import Entry, SourceState
from stae_cli.storage.names import check_key

FORMAT = "stae-latents-shard"
HEADER_LIMIT = 64 << 20  # bytes; ours take about 400 per picture
COMMON_FIELDS = (
    *("stae_version", "architecture", "weights", "weights_sha256"),
    *("downsample", "latent_channels", "prep", "compute_dtype"),
)


@dataclass(frozen=True)
class TarNote:
    """What each shard of a tar records of the tar: its tag, and how much of it can be encoded.

    It shows that a tar on a store is finished, without fetching the tar again.
    """

    etag: str
    pictures: int  # that can be encoded
    problems: int  # members that cannot
    captions: bool = False  # whether captions and labels were read

    def text(self) -> str:
        """As in a shard's metadata."""
        return json.dumps(asdict(self))


def parse_note(text: object) -> TarNote | None:
    """The note of a shard, or None if there is no valid one."""
    try:
        values: Any = json.loads(text) if isinstance(text, str) else None
        counts = int(values["pictures"]), int(values["problems"])
        return TarNote(str(values["etag"]), *counts, captions=values.get("captions") is True)
    except (ValueError, KeyError, TypeError):
        return None


def write_shard(
    path: Path,
    latents: Sequence[StoredLatent],
    data: Iterable[Data],
    *,
    note: TarNote | None = None,
) -> int:
    """Writes a shard to exactly `path` and returns its size in bytes.

    Args:
        path: the file.
        latents: at least one; wherever they are stored now.
        data: of each latent and its flip together, in the same order.
        note: of the tar that all of them are from.
    """
    infos = {
        latent.key: latent.info.to_strings() | latent.info.seal(latent.shape, latent.dtype)
        for latent in latents
    }
    common = _common(list(infos.values()))
    pictures = {
        key: {name: text for name, text in values.items() if common.get(name) != text}
        for key, values in infos.items()
    }
    metadata = {"format": FORMAT, "format_version": FORMAT_VERSION, **common}
    metadata["pictures"] = json_text(pictures)
    if note is not None:
        metadata["tar"] = note.text()
    tensors = {name: kind for each in latents for name, kind in each.tensors.items()}
    header = header_bytes(metadata, tensors)
    if len(header) > HEADER_LIMIT:
        raise StaeError(
            f"the captions of {len(latents)} pictures are too long for a shard ({path.name}): "
            f"{len(header) >> 20} MiB",
            "use a smaller `--shard-size`",
        )
    with path.open("wb") as file:
        size = file.write(header)
        for part in data:
            size += file.write(part)
    return size


def _common(infos: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The most common values; pictures with other values record their own."""
    return {
        name: Counter(info[name] for info in infos).most_common(1)[0][0] for name in COMMON_FIELDS
    }


def parse_shard(
    tensors: Mapping[str, Any],
    metadata: Mapping[str, Any],
    data: int,
    *,
    file: Entry,
    state: SourceState,
) -> list[StoredLatent]:
    """The latents of a shard, from what `read_tensors` found there.

    Raises:
        ForeignFileError: not a shard of ours.
        InputError: truncated or damaged, or with keys that lead elsewhere.
    """
    check_format(tensors, metadata, FORMAT)
    pictures = metadata.get("pictures")
    rest = json_object(pictures if isinstance(pictures, str) else "")
    keys = [name for name in tensors if not name.endswith(FLIPPED_SUFFIX)]
    flips = {name.removesuffix(FLIPPED_SUFFIX) for name in tensors} - set(keys)
    if rest.keys() != set(keys) or flips:
        raise InputError("damaged: its pictures and its tensors are not the same")
    if not tensors:
        raise InputError("damaged: an empty shard")
    latents, side = [], 0
    for key in keys:
        check_key(key)
        if not isinstance(rest[key], dict):
            raise InputError("damaged: a picture without its metadata")
        info = parse_info({**metadata, **rest[key]})
        shape, dtype, begin, end = checked_latent(tensors, key, key + FLIPPED_SUFFIX, info)
        check_seal(rest[key], info, shape, dtype)
        if begin != side:
            raise InputError("damaged: its tensors do not lie side by side")
        latents.append(StoredLatent(key, info, shape, dtype, file, state, data + begin, False))
        side = end
    if data + side != state.size:
        raise InputError("truncated" if state.size < data + side else "damaged: wrong size")
    return latents

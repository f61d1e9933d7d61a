"""What a decoded picture records of its latent, to tell whether it needs decoding again."""

from __future__ import annotations

import json
from typing import Any

from stae_cli.foreign.arrays import ForeignLatent
from stae_cli.foreign.normalised import Undo
from stae_cli.latents.format import SUFFIX, StoredLatent
from stae_cli.storage.entry import root_id


def picture_record(stored: StoredLatent) -> dict[str, str | int]:
    """What a picture records of its latent."""
    record: dict[str, str | int] = {
        "latents": f"{stored.key}{SUFFIX}",
        "latents_mtime_ns": stored.state.mtime_ns,
        "latents_size": stored.state.size,
        "latents_root": root_id(stored.file.root),
        "weights_sha256": stored.info.weights_sha256,
    }
    if stored.state.etag:
        record["latents_etag"] = stored.state.etag
    if stored.info.data_crc32:
        record["data_crc32"] = stored.info.data_crc32
        record["size"] = f"{stored.info.width}x{stored.info.height}"
    return record


def foreign_record(latent: ForeignLatent, weights_sha256: str, undo: Undo) -> dict[str, str | int]:
    """What a picture records of a latent of another program, which has neither checksum nor info.

    `values` tells which normalisation was undone.
    """
    return {
        "latents": latent.label,
        "latents_mtime_ns": latent.state.mtime_ns,
        "latents_size": latent.state.size,
        "latents_root": root_id(latent.file.root),
        "weights_sha256": weights_sha256,
        "values": undo.identity,
    }


def is_picture_of(found: str, record: dict[str, str | int]) -> bool:
    """Whether a picture was made from this latent: by its checksum, or else by its file's state."""
    always = ["latents", "weights_sha256"]
    if "data_crc32" in record and recorded(found, "data_crc32") is not None:
        compared = [*always, "data_crc32", "size"]
    else:  # one of them is of an earlier version
        compared = [*always, "latents_mtime_ns", "latents_size", "latents_etag", "values"]
    return all(recorded(found, name) == record.get(name) for name in compared)


def recorded(found: str, name: str) -> Any:
    """A field of a picture's record; None where it is absent or the record is damaged."""
    try:
        return json.loads(found).get(name)
    except (ValueError, AttributeError):
        return None

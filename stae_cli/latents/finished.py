"""Tars on stores whose shards are all there, so that they need not be fetched again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from stae_cli.errors import InputError
from stae_cli.latents.listing import StoredLatent, stored_in
from stae_cli.latents.safetensors_header import read_tensors
from stae_cli.latents.shard_format import HEADER_LIMIT, TarNote, parse_note
from stae_cli.storage.destination import Destination
from stae_cli.storage.entry import Entry


def all_stored(
    destination: Destination,
    shard_name: Callable[[int], str],
    *,
    etag: str,
    shard_size: int,
    is_ours: Callable[[StoredLatent], bool],
) -> list[StoredLatent] | None:
    """The latents of a tar, if DEST has every one of them; from headers alone.

    Args:
        destination: DEST.
        shard_name: of the tar's shards, by their numbers.
        etag: of the tar now.
        shard_size: pictures to a shard.
        is_ours: whether a latent is what this run would make of its source.

    Returns:
        None where anything is missing or in doubt, and where the tar has members that cannot be
        encoded: they are to be listed again.
    """
    try:
        note = _note(destination.entry(shard_name(0)))
        if note is None or note.etag != etag or note.problems or note.pictures < 1:
            return None
        stored = list(_stored(destination, shard_name, note, shard_size))
    except (OSError, InputError):
        return None
    whole = len({latent.key for latent in stored}) == note.pictures
    return stored if whole and all(map(is_ours, stored)) else None


def _stored(
    destination: Destination, shard_name: Callable[[int], str], note: TarNote, size: int
) -> Iterator[StoredLatent]:
    """The latents of all shards; fewer, where one of them holds fewer than it should."""
    count = -(-note.pictures // size)
    for number in range(count):
        latents = stored_in(destination.entry(shard_name(number)))
        if len(latents) != min(size, note.pictures - number * size):
            return
        yield from latents
    if destination.holds(shard_name(count)):  # surplus, to be told of
        raise InputError("more shards than the tar has pictures for")


def _note(entry: Entry) -> TarNote | None:
    with entry.open() as file:
        _, metadata, _ = read_tensors(file, entry.state().size, limit=HEADER_LIMIT)
    return parse_note(metadata.get("tar"))

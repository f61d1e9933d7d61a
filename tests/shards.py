"""Shards as tests need them: of any latents, at any path."""

from stae_cli.latents.format import StoredLatent, latent_bytes
from stae_cli.latents.shard_format import write_shard
from stae_cli.storage.entry import FileEntry, SourceState

WAITING = FileEntry("waiting", "waiting")


def write_latents(path, latents):
    """Writes (key, info, values) of each to one shard; returns its size in bytes."""
    stored = [
        StoredLatent(
            key, info, values.shape, values.dtype.name, WAITING, SourceState(0), 0, is_alone=False
        )
        for key, info, values in latents
    ]
    return write_shard(path, stored, [latent_bytes(values) for _, _, values in latents])

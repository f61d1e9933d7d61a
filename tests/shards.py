"""Shards as tests need them: of any latents, at any path."""

from stae_cli.latents.format import StoredLatent, latent_bytes, with_checksums
from stae_cli.latents.shard_format import write_shard
from stae_cli.storage.entry import FileEntry, SourceState

WAITING = FileEntry("waiting", "waiting")


def write_latents(path, latents):
    """Writes (key, info, values) of each, and a flip's values, to one shard; returns its bytes."""
    stored, data = [], []
    for key, info, values, *flip in latents:
        parts = [latent_bytes(each) for each in (values, *flip)]
        info = with_checksums(info, parts) if flip else info
        shape, dtype = values.shape, values.dtype.name
        stored.append(StoredLatent(key, info, shape, dtype, WAITING, SourceState(0), 0, False))
        data.append(b"".join(parts))
    return write_shard(path, stored, data)

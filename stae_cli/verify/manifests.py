"""Manifests against the shards that they list."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from stae_cli.latents.format import SUFFIX
from stae_cli.latents.manifest import NAME, read_manifests
from stae_cli.storage.destination import Destination
from stae_cli.storage.entry import Problem
from stae_cli.verify.findings import Finding
from stae_cli.verify.outputs import Output


def wrong_lines(
    destination: Destination, outputs: Sequence[Output], *, broken: Collection[str]
) -> Iterator[Finding]:
    """What the manifests of DEST say that its shards do not, and the other way round.

    Args:
        destination: DEST, of shards.
        outputs: all that it holds.
        broken: the names, without the suffix, of shards that cannot be read; their lines may be
            right.

    Raises:
        StaeError: DEST cannot be read.
    """
    shards = {output.key: output.file.key for output in outputs}
    listed, manifests = set(), set()
    for line in read_manifests(destination):
        if isinstance(line, Problem):
            manifests.add(line.key)
            yield Finding("manifest", line.key, line.reason)
            continue
        manifests.add(line.manifest)
        if line.key in listed:
            yield Finding("manifest", line.manifest, f"it lists `{line.key}` twice")
        listed.add(line.key)
        shard = shards.get(line.key)
        if shard != line.shard and line.shard.removesuffix(SUFFIX) not in broken:
            where = f"it is in `{shard}`" if shard else "it is in none"
            reason = f"it says that `{line.key}` is in `{line.shard}`; {where}"
            yield Finding("manifest", line.manifest, reason)
    if not manifests and shards:
        yield Finding("manifest", f"{NAME}.jsonl", "absent: the last run did not come to its end")
        return
    for key, shard in shards.items():
        if key not in listed:
            yield Finding("manifest", shard, f"no manifest lists `{key}`")

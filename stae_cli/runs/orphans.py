"""Latents whose sources are gone, in a run: removed with `--prune`, or else listed in DEST."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from stae_cli.errors import StaeError
from stae_cli.latents.format import SUFFIX
from stae_cli.latents.manifest import Manifest
from stae_cli.latents.orphans import GAPS, Orphan, prune, write_orphans
from stae_cli.latents.writer import stored_at
from stae_cli.runs.encode_plan import EncodePlan
from stae_cli.runs.units import shard_number
from stae_cli.storage.destination import Destination, FolderDestination


def refuse_surplus(plan: EncodePlan) -> None:
    """Refuses shards after the last one: they are another run's, and hold its pictures again.

    Raises:
        StaeError: there are some.
    """
    if not plan.settings.shard_size:
        return
    for name in plan.destination.top_names():
        number = shard_number(name)
        if number is not None and number >= plan.listed_shards:
            raise StaeError(
                f"`{plan.destination.place(name)}` is more than this run's sources need",
                "choose another DEST; or, if sources are gone for good, remove the shards of DEST",
            )


def prune_planned(plan: EncodePlan, manifest: Manifest | None) -> None:
    """Removes the orphans that the plan found, if it says so; before any latent is written."""
    settings, orphans = plan.settings, plan.present.orphans
    if settings.overwrite and settings.shard_size:
        plan.destination.remove(GAPS)
    if settings.prune and orphans:
        if manifest is not None:
            manifest.outdate()
        prune(plan.destination, orphans, number_of=shard_number)


def list_orphans(plan: EncodePlan, in_tars: Sequence[Orphan]) -> None:
    """Lists the orphans that stay, of the plan and of tars, in DEST."""
    if plan.settings.share.rank == 0:
        orphans = () if plan.settings.prune else (*plan.present.orphans, *in_tars)
        write_orphans(plan.destination, orphans, roots=plan.roots)


def orphans_of_tar(
    destination: Destination, folder: str, outputs: Collection[str], root: str
) -> Iterator[Orphan]:
    """Latents in files below a tar's folder that are of no member any more.

    Stores are not looked at: their tars have shards.

    Args:
        destination: DEST.
        folder: of the tar's outputs, with a `/` at its end.
        outputs: of all members, also of those that fail.
        root: what identifies the root of the tar.
    """
    if not isinstance(destination, FolderDestination):
        return
    for below in FolderDestination(destination.path(folder.rstrip("/"))).names():
        name = f"{folder}{below}"
        if name in outputs or not name.endswith(SUFFIX):
            continue
        for latent in stored_at(destination, name):
            info = latent.info
            if latent.is_alone and info.source_root == root and info.source.startswith(folder):
                yield Orphan(latent.key, name, info.source, root)

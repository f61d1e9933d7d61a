"""What of a DEST is uploaded: its latents and records, if the run that wrote them is complete."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stae_cli.errors import InputError, StaeError, UsageError
from stae_cli.flow.read_ahead import Reserve, scanning
from stae_cli.latents.failures import read_failures
from stae_cli.latents.format import SUFFIX, StoredLatent
from stae_cli.latents.info import LatentInfo
from stae_cli.latents.listing import stored_in
from stae_cli.latents.manifest import read_manifests
from stae_cli.latents.parts import unfinished_parts
from stae_cli.latents.run_record import SHARDS, RunRecord, read_record
from stae_cli.latents.safetensors_header import ForeignFileError
from stae_cli.storage.destination import FolderDestination
from stae_cli.storage.entry import Problem
from stae_cli.storage.folders import is_own
from stae_cli.storage.fsspec_store import is_url
from stae_cli.storage.temp_files import TEMPORARY, is_abandoned

Looked = Sequence[StoredLatent] | Problem | None

NAMED = 3  # files in a message
FINISH = "finish it: run the same `stae encode` again"


@dataclass
class PushPlan:
    """The files to upload, and what their headers say.

    `latents` and `records` are names in `folder`; `left_out` are names of other files. `sizes` are
    the bytes of each file to upload. `count` is the number of latents, and `info` that of one.
    `failed` inputs of the run have no latent.
    """

    folder: Path
    record: RunRecord
    latents: list[str] = field(default_factory=list)
    records: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    count: int = 0
    pictures: Counter[tuple[int, int]] = field(default_factory=Counter)
    captions: int = 0
    labels: int = 0
    flips: int = 0
    info: LatentInfo | None = None
    failed: int = 0

    @property
    def size(self) -> int:
        """The bytes of all files to upload."""
        return sum(self.sizes.values())

    def take(self, name: str, size: int, latents: Sequence[StoredLatent]) -> None:
        """Adds a file of latents."""
        self.latents.append(name)
        self.sizes[name] = size
        self.count += len(latents)
        for latent in latents:
            self.info = latent.info
            self.pictures[latent.info.width, latent.info.height] += 1
            self.captions += bool(latent.info.caption)
            self.labels += latent.info.label >= 0
            self.flips += bool(latent.info.flip_crc32)


def plan_push(folder: Path | str, *, workers: int | None = None) -> PushPlan:
    """Looks through a DEST of `stae encode`, at the headers of all its files.

    Raises:
        UsageError: it is not one.
        StaeError: its run has not finished, or a file is damaged or of another run.
    """
    if is_url(folder) or not Path(folder).is_dir():
        what = "is not a local folder" if is_url(folder) else "is not there"
        raise UsageError(f"`{folder}` {what}", "give the DEST of `stae encode`, a folder")
    destination = FolderDestination(Path(folder))
    record = read_record(destination)
    if record is None or record.kind != "latents":
        raise UsageError(
            f"`{folder}` holds no latents of a run", "give the DEST of `stae encode`, a folder"
        )
    plan = PushPlan(Path(folder), record)
    _refuse_unfinished(destination, record)
    _sort_files(plan, destination, workers)
    if not plan.latents:
        raise StaeError(f"`{folder}` holds no latents", FINISH)
    plan.failed = len(read_failures(destination))
    return plan


def _refuse_unfinished(destination: FolderDestination, record: RunRecord) -> None:
    place = destination.place()
    for problem in unfinished_parts(destination):
        raise StaeError(f"the run in `{place}` is not complete: {problem.reason}", FINISH)
    if record.layout == SHARDS and next(read_manifests(destination), None) is None:
        raise StaeError(f"the run in `{place}` is not complete: it has no manifest", FINISH)


def _sort_files(plan: PushPlan, destination: FolderDestination, workers: int | None) -> None:
    """Sorts the files of DEST into latents, records, and others."""
    candidates, damaged = [], list[Problem]()
    for name in destination.names():
        _refuse_running(destination, name)
        if "/" not in name and is_own(name):
            plan.records.append(name)
            plan.sizes[name] = destination.path(name).stat().st_size
        elif name.endswith(SUFFIX) and not any(p.startswith(".") for p in name.split("/")):
            candidates.append(name)
        else:
            plan.left_out.append(name)
    with scanning(candidates, _look(destination), workers=workers) as results:
        for name, found in zip(candidates, results, strict=False):
            if isinstance(found, Problem):
                damaged.append(found)
            elif found is None:
                plan.left_out.append(name)
            else:
                _refuse_another_run(plan.record, found)
                plan.take(name, found[0].state.size, found)
    if damaged:
        named = "; ".join(f"{each.key}: {each.reason}" for each in damaged[:NAMED])
        raise StaeError(
            f"{len(damaged)} files of `{plan.folder}` are damaged: {named}",
            "run the same `stae encode` again, which replaces them",
        )


def _look(destination: FolderDestination) -> Callable[[str, Reserve], Looked]:
    """Reads the header of a file in a reading thread; None for a file of another program."""

    def look(name: str, _reserve: Reserve) -> Looked:
        try:
            return stored_in(destination.entry(name))
        except ForeignFileError:
            return None
        except InputError as error:
            return Problem(name, error.message)

    return look


def _refuse_another_run(record: RunRecord, latents: Sequence[StoredLatent]) -> None:
    for latent in latents:
        if latent.info.weights_sha256 != record.weights_sha256 or latent.info.prep != record.prep:
            raise StaeError(
                f"`{latent.file.place}` was made with other weights or settings than the run "
                "record says",
                "run `stae verify`, and move files of other runs away",
            )


def _refuse_running(destination: FolderDestination, name: str) -> None:
    """Refuses a DEST in which a process is writing."""
    match = TEMPORARY.fullmatch(name.rpartition("/")[2])
    if match and not is_abandoned(match, destination.path(name).stat().st_mtime):
        raise StaeError(
            f"a run is writing to `{destination.place()}`: it has the temporary file `{name}`",
            "push it when that run has finished",
        )

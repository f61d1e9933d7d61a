"""The run behind `stae export`: everything is written to a folder beside DEST, then renamed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from stae_cli._version import __version__
from stae_cli.errors import StaeError, UsageError
from stae_cli.export.arrays import FastDiT, Mar, NpyTree
from stae_cli.export.format import About, Format, Normalize
from stae_cli.export.lightningdit import LightningDiT
from stae_cli.export.parquet import Parquet
from stae_cli.export.samples import Samples, Scaling
from stae_cli.export.webdataset import WebDataset
from stae_cli.foreign.normalised import read_statistics
from stae_cli.latents.index import index_latents
from stae_cli.latents.moments import statistics_of
from stae_cli.storage.fsspec_store import is_url
from stae_cli.storage.whole_folder import appearing, contents

FormatName = Literal["lightningdit", "webdataset", "parquet", "npy", "fast-dit", "mar"]
FORMATS: dict[FormatName, type[Format]] = {
    "lightningdit": LightningDiT,
    "webdataset": WebDataset,
    "parquet": Parquet,
    "npy": NpyTree,
    "fast-dit": FastDiT,
    "mar": Mar,
}
MARK = ".stae-export.json"  # in DEST: shows that it may be replaced; readers skip hidden files
STATISTICS = "latents_stats.pt"


@dataclass(frozen=True)
class ExportSettings:
    """What is written, and how.

    `normalize` None is what the format wants; with `stats`, a file, that says by what. `per_file`
    latents share a file where several do.
    """

    form: FormatName
    normalize: Normalize | None = None
    stats: Path | None = None
    per_file: int = 10_000
    overwrite: bool = False


@dataclass(frozen=True)
class Exported:
    """What an export has written."""

    dest: str
    form: str
    latents: int
    files: int
    size: int  # bytes
    normalize: Normalize
    weights: str
    weights_sha256: str
    seconds: float


def export(
    sources: Sequence[Path | str],
    dest: Path | str,
    settings: ExportSettings,
    *,
    advance: Callable[[int], None],
) -> Exported:
    """Writes stored latents in another format. DEST appears whole at the end, or not at all.

    Args:
        sources: latent files, or folders of them.
        dest: a folder that is absent, empty, or an earlier export.
        settings: what to write.
        advance: called with the number of latents written.

    Raises:
        UsageError: a source does not exist, or options that contradict each other.
        StaeError: DEST holds something else or cannot be written to; the format cannot hold the
            latents; a latent is damaged, or what `index_latents` raises.
    """
    started = time.perf_counter()
    folder = _checked_dest(sources, dest, overwrite=settings.overwrite)
    form = FORMATS[settings.form]()
    samples = Samples(index_latents([Path(source) for source in sources]))
    if not len(samples):
        raise StaeError("there are no latents to export", "check the sources")
    how = settings.normalize or form.normalize
    if settings.stats and how == "none":
        raise UsageError("nothing is normalized, so `--stats` is not needed", "omit it")
    form.check(samples, how)
    index = samples.index
    about = About(index.weights, index.weights_sha256, how)
    with appearing(folder) as temporary:
        if how != "none" or form.statistics:
            scaling = _scaling(samples, how, settings.stats)
            _write_statistics(temporary / STATISTICS, scaling)
            samples = Samples(index, scaling) if how != "none" else samples
        for count in form.write(samples, temporary, settings.per_file, about):
            advance(count)
            os.utime(temporary)  # shows other processes that it is not abandoned
        files = [path for path in temporary.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        mark = {"stae": __version__, "to": settings.form, "latents": len(samples), **asdict(about)}
        (temporary / MARK).write_text(json.dumps(mark) + "\n")
    return Exported(
        str(dest),
        settings.form,
        len(samples),
        len(files),
        size,
        how,
        about.weights,
        about.weights_sha256,
        time.perf_counter() - started,
    )


def _checked_dest(sources: Sequence[Path | str], dest: Path | str, *, overwrite: bool) -> Path:
    """DEST, if it may be written: absent, empty, or an earlier export."""
    for place in (dest, *sources):
        if is_url(place):
            raise UsageError(f"`{place}` is a URL", "export to and from folders of this machine")
    folder = Path(dest)
    real = Path(os.path.realpath(folder))
    for source in sources:
        if real.is_relative_to(os.path.realpath(source)):
            raise UsageError(
                f"DEST `{dest}` is inside SOURCE `{source}`", "choose a DEST outside of it"
            )
    if not os.path.lexists(folder):
        return folder
    if not folder.is_dir():
        raise UsageError(f"DEST `{dest}` is a file", "give a folder")
    if contents(folder):
        if not (folder / MARK).is_file():
            raise UsageError(f"DEST `{dest}` holds other files", "give an empty folder")
        if not overwrite:
            raise UsageError(f"DEST `{dest}` holds an export", "choose another, or `--overwrite`")
    return folder


def _scaling(samples: Samples, how: Normalize, stats: Path | None) -> Scaling:
    """Mean and deviation: of the latents themselves, or of a file."""
    channels = samples.index.location(0).channels
    if stats is None:
        statistics = statistics_of(samples.moments())
        mean, std = statistics.mean, statistics.std
        if how == "scalar":
            mean, std = [statistics.shift], [1 / statistics.scale if statistics.scale else 0.0]
    else:
        undo = read_statistics(stats)
        undo.check(channels, "--stats")
        if undo.weights_sha256 not in ("", samples.index.weights_sha256):
            raise UsageError(
                f"`{stats}` holds the statistics of another checkpoint's latents "
                f"({undo.weights_sha256[:12]})",
                "give those of these latents, or omit `--stats`",
            )
        mean, std = list(undo.shift), list(undo.factor)
    if min(std) <= 0:
        raise StaeError("a channel of the latents is constant, so it has no deviation", "omit it")
    both = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (mean, std))
    return Scaling(*(np.broadcast_to(values, (channels, 1, 1)) for values in both))


def _write_statistics(path: Path, scaling: Scaling) -> None:
    """As LightningDiT and `stae decode --stats` read them: z * std + mean is the raw latent."""
    import torch

    values = {"mean": scaling.mean, "std": scaling.std}
    torch.save({name: torch.tensor(each[None].copy()) for name, each in values.items()}, path)

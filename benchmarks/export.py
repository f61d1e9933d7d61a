"""Times `stae export`: latents a second in each format, and how much memory it takes.

Small latents, so that what counts is the work for each: reading, checking and writing it.
"""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.record import options, record
from stae_cli.export.run import FORMATS
from stae_cli.latents.format import StoredLatent, latent_bytes, with_checksums
from stae_cli.latents.info import LatentInfo
from stae_cli.latents.shard_format import write_shard
from stae_cli.storage.entry import FileEntry, SourceState

COUNT, SHARD = 100_000, 1000
SHAPE = 16, 8, 8
CAPTION = "A photograph of a small brown dog on a wooden bench beside a lake, under a blue sky."
HERE = "--one"  # runs one export in this process


def main(argv: Sequence[str] | None = None) -> None:
    parser = options("export", __doc__)
    parser.add_argument("--quick", action="store_true", help="few latents: try this script")
    parser.add_argument("--rounds", default=3, type=int)
    parser.add_argument("--to", choices=FORMATS, nargs="+", default=list(FORMATS))
    given = parser.parse_args(argv)
    count = 2 * SHARD if given.quick else COUNT
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "latents").mkdir()
        for number in range(count // SHARD):
            write(folder / "latents" / f"shard-{number:05}.safetensors", number)
        found = {form: [exported(folder, form) for _ in range(given.rounds)] for form in given.to}
    results = [
        {
            "format": form,
            "latents_per_second": max(count / seconds for seconds, _ in rounds),
            "peak_bytes": max(peak for _, peak in rounds),
        }
        for form, rounds in found.items()
    ]
    record(given, "export-cpu", {"latents": count, "shape": SHAPE, "formats": results})


def write(path: Path, number: int) -> None:
    """A shard of one class."""
    info = LatentInfo(
        *("0.1.0", "f8c16", "none", "0" * 64, 8, 16, "", 1, 1, 64, 64, 64, 64, "{}", "float16"),
        caption=CAPTION,
        label=number,
    )
    generator = np.random.default_rng(number)
    values = generator.standard_normal((SHARD, 2, *SHAPE), np.float32).astype(np.float16)
    data = [[latent_bytes(each) for each in both] for both in values]
    latents = [
        StoredLatent(
            f"{number:05}/{index}",
            with_checksums(replace(info, source=f"{number:05}/{index}.png"), both),
            SHAPE,
            "float16",
            FileEntry("x", "x"),
            SourceState(0),
            0,
            is_alone=False,
        )
        for index, both in enumerate(data)
    ]
    write_shard(path, latents, (b"".join(both) for both in data))


def exported(folder: Path, form: str) -> tuple[float, int]:
    """Seconds and peak memory of an export, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.export", HERE, str(folder), form]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak = ran.stdout.split()
    return float(seconds), int(peak)


def one(folder: str, form: str) -> None:
    """What that process does."""
    from stae_cli.export.run import ExportSettings, export

    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        settings = ExportSettings(form=form)
        export([Path(folder, "latents")], Path(name, "out"), settings, advance=lambda _: None)
        seconds = time.perf_counter() - started
    print(seconds, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    if sys.argv[1:2] == [HERE]:
        one(*sys.argv[2:])
    else:
        main()

"""Times `stae encode` with one process and with several that share a device.

python benchmarks/sharing.py [--device cuda] [--processes 1,2,4]

JPEGs of one megapixel and small ones. A run over a few files tells what starting takes; it is
subtracted.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from command import CommandError, stae_json
from path import write_jpegs
from record import Recorder, add_options, record, recorder

# Pictures of each kind, and pixels on a side. Each stands in several folders: enough to be timed.
KINDS = {"large": (256, 1024), "small": (2000, 256)}
FOLDERS = 4
PROCESSES = (1, 2, 4)
FIRST = 16  # pictures of the run that shows what starting takes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", default=",".join(map(str, PROCESSES)))
    parser.add_argument("--weights", default="builtin")
    parser.add_argument("--share", default=1, type=int, help="make so many times fewer pictures")
    parser.add_argument("--within", default=1e6, type=float, help="seconds for all of it")
    add_options(parser)
    given = parser.parse_args()
    failures = measure(
        given.device, [int(number) for number in given.processes.split(",")],
        weights=given.weights, share=given.share, within=given.within, record=recorder(given),
    )  # fmt: skip
    sys.exit(1 if failures else 0)


def measure(
    device: str,
    processes: Sequence[int],
    *,
    weights: str = "builtin",
    share: int = 1,
    within: float = 1e6,
    record: Recorder = record,
) -> dict[str, str]:
    """Records images per second for each number of processes, as each ends; returns what failed."""
    end = monotonic() + within
    runs: list[dict] = []
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        sources = write_sources(Path(folder), share)
        for number in processes:
            print(f"timing {number} processes on a device", file=sys.stderr, flush=True)
            names = ",".join([one_device(device)] * number)
            try:
                found = rates(sources, names, weights, end)
                runs.append({"processes": number, "devices": names, **found})
            except CommandError as error:
                failures[f"{number} processes"] = str(error)
                print(error, file=sys.stderr, flush=True)
            result = {"cores": os.cpu_count(), "runs": runs, "failures": failures}
            record(f"sharing-{device.partition(':')[0]}", result)
    return failures


def one_device(device: str) -> str:
    """As `stae` names it among several: `cuda` alone may be any of them."""
    return f"{device}:0" if device == "cuda" else device


def write_sources(folder: Path, share: int) -> dict[str, Path]:
    """A folder of each kind, and one of a few pictures."""
    sources = {"first": folder / "first"}
    write_jpegs(sources["first"], range(FIRST), 256)
    for kind, (count, side) in KINDS.items():
        sources[kind] = folder / kind
        write_jpegs(folder / kind / "0", range(max(1, count // share)), side)
        for copy in range(1, FOLDERS):
            shutil.copytree(folder / kind / "0", folder / kind / str(copy), copy_function=linked)
    return sources


def linked(source: str, target: str) -> None:
    """The file under another name; a copy where links are not to be had."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def rates(sources: dict[str, Path], devices: str, weights: str, end: float) -> dict:
    """Seconds of the start, and of each kind seconds and images per second without it."""
    start = encoded(sources["first"], devices, weights, end)["seconds"]
    found: dict = {"start_seconds": start}
    for kind in KINDS:
        said = encoded(sources[kind], devices, weights, end)
        images, seconds = said["done"] - FIRST, said["seconds"] - start
        found[kind] = {
            "images": said["done"],
            "seconds": said["seconds"],
            "images_per_second": images / seconds if min(images, seconds) > 0 else None,
        }
    return found


def encoded(source: Path, devices: str, weights: str, end: float) -> dict:
    """What `stae encode` says of a folder; what it wrote is removed."""
    target = source.with_name(f"latents-{source.name}")
    try:
        return stae_json(
            "encode", source, target, "--device", devices, "--weights", weights, "--quiet",
            timeout=end - monotonic(),
        )  # fmt: skip
    finally:
        shutil.rmtree(target, ignore_errors=True)


if __name__ == "__main__":
    main()

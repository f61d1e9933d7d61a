"""Times what a picture costs beside its network: `stae encode` with a network that takes no time.

Reading, planning, packing and writing, whatever the device: the most pictures that one process can
encode in a second. Most of it is Python's own work, which threads share and processes do not.
In the same rounds, the floor: the same files read and decoded by simplejpeg, and nothing else.
Then the same by several processes, as `--device cuda:0,cuda:0` starts them, without their start.
"""

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import simplejpeg
import torch

from benchmarks.files import photos
from benchmarks.record import options, record, seconds_of
from stae_cli.benchmark.report import Spread
from stae_cli.benchmark.stopwatch import rounds_of
from stae_cli.images.resize import Prep
from stae_cli.network.architecture import F8C16
from stae_cli.runs.encode import encode
from stae_cli.runs.encode_plan import EncodeSettings, plan_encode
from stae_cli.runs.local_workers import Processes
from stae_cli.runs.workers import CodecMaker, ThisProcess

SIDES = {256: 2000, 1024: 300}  # pixels, and how many pictures
SHARDS = (0, 256)
PROCESSES = (1, 2, 3)
FEW, MANY = 2000, 8000  # pictures, of 256x256: the difference is without the start of processes
THREADS = os.cpu_count() or 1
AT_ONCE = 32  # files that a thread of the floor takes together
FLOOR = "decoding alone"


class NoNetwork:
    """A codec whose latents are zeros, returned at once."""

    architecture, device, dtype = F8C16, torch.device("cpu"), torch.float16
    batch_patches, host_memory, runs_beside = 131072, None, False

    def begin_encoding(self, pictures):
        latents = [np.zeros((16, p.shape[0] // 8, p.shape[1] // 8), np.float16) for p in pictures]
        return lambda: latents


@dataclass(frozen=True)
class NoNetworks(CodecMaker):
    """Gives each process that network."""

    def on(self, kinds):
        return self

    def codec(self, device):
        return NoNetwork()


def main(argv: Sequence[str] | None = None) -> None:
    parser = options("overhead", __doc__)
    parser.add_argument("--seconds", default=60.0, type=float, help="for all rounds")
    parser.add_argument("--quick", action="store_true", help="few pictures: try this script")
    given = parser.parse_args(argv)
    counts = dict.fromkeys(SIDES, 3) if given.quick else SIDES
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for side, count in counts.items():
            (folder / f"{side}").mkdir()
            two = list(islice(photos(side, side), 2))
            for index in range(count):
                two[index % 2].save(folder / f"{side}" / f"{index}.jpg", quality=90)
        tasks = {
            (side, shard): lambda side=side, shard=shard: encoded(folder / f"{side}", shard)
            for side in counts
            for shard in SHARDS
        }
        for side in counts:
            tasks[side, FLOOR] = seconds_of(lambda side=side: decoded(folder / f"{side}"))
        for task in tasks.values():
            task()  # warms up
        rounds = rounds_of(tasks, given.seconds)
        several = [
            {
                "processes": count,
                "shard_size": shard,
                "milliseconds": 1000 * by_processes(folder, shard, count, given.quick),
            }
            for shard in (SHARDS[-1:] if given.quick else SHARDS)
            for count in (PROCESSES[1:2] if given.quick else PROCESSES)
        ]
    milliseconds = {
        (side, kind): asdict(Spread.of([1000 * each[side, kind] / counts[side] for each in rounds]))
        for side, kind in tasks
    }
    found = [
        {"side": side, "shard_size": shard, "milliseconds": milliseconds[side, shard]}
        for side in counts
        for shard in SHARDS
    ]
    floor = [{"side": side, "milliseconds": milliseconds[side, FLOOR]} for side in counts]
    result = {"threads": THREADS, "pictures": found, "floor": floor, "processes": several}
    record(given, "overhead-cpu", result)


def encoded(source: Path, shard: int, processes: int = 1) -> float:
    """Seconds of the run itself."""
    workers = ThisProcess(NoNetwork())
    if processes > 1:
        workers = Processes(["cpu"] * processes, NoNetworks(int, "0" * 64, torch.float16, None))
    settings = EncodeSettings(Prep(), workers=-(-THREADS // processes), shard_size=shard)
    with tempfile.TemporaryDirectory() as dest:
        plan = plan_encode([source], Path(dest) / "latents", settings)
        checkpoint = SimpleNamespace(name="none", fingerprint="0" * 64)
        return encode(plan, checkpoint, workers, advance=lambda _: None).seconds


def by_processes(folder: Path, shard: int, processes: int, quick: bool) -> float:
    """Seconds for a picture of 256x256, by so many processes: those of MANY less those of FEW.

    The least of three runs each; if it is `quick`, of one of few pictures, with the start.
    """
    seconds = []
    for count in (3,) if quick else (FEW, MANY):
        source = folder / f"{count} pictures"
        if not source.exists():
            source.mkdir()
            files = sorted((folder / "256").iterdir())
            for number in range(count):
                os.link(files[number % len(files)], source / f"{number}.jpg")
        runs = range(1 if quick else 3)
        seconds.append(min(encoded(source, shard, processes) for _ in runs))
    return seconds[0] / 3 if quick else (seconds[1] - seconds[0]) / (MANY - FEW)


def decoded(source: Path) -> None:
    """The files, read and decoded by as many threads."""

    def read(path: Path) -> None:
        simplejpeg.decode_jpeg(path.read_bytes())

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, source.iterdir(), chunksize=AT_ONCE))


if __name__ == "__main__":
    main()

"""What a picture costs beside its network: `stae encode` with a network that takes no time.

PYTHONPATH=. python benchmarks/overhead.py

Reading, planning, packing and writing, whatever the device: the most pictures that one process can
encode in a second. Most of it is Python's own work, which threads share and processes do not.
"""

import json
import os
import statistics
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from files import photos
from record import record

from stae_cli.images.resize import Prep
from stae_cli.network.architecture import F8C16
from stae_cli.runs.encode import encode
from stae_cli.runs.encode_plan import EncodeSettings, plan_encode
from stae_cli.runs.workers import ThisProcess

SIDES = {256: 2000, 1024: 300}  # pixels, and how many pictures
SHARDS = (0, 256)
ROUNDS = 5


class NoNetwork:
    """A codec whose latents are zeros, there at once."""

    architecture, device, dtype = F8C16, torch.device("cpu"), torch.float16
    batch_patches, host_memory, runs_beside = 131072, None, False

    def begin_encoding(self, pictures):
        latents = [np.zeros((16, p.shape[0] // 8, p.shape[1] // 8), np.float16) for p in pictures]
        return lambda: latents


def main() -> None:
    threads = os.cpu_count() or 1
    times: dict[tuple[int, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for side, count in SIDES.items():
            written(folder / f"{side}", side, count)
        for turn in range(ROUNDS):
            for side in SIDES:
                for shard in SHARDS:
                    dest = folder / f"out-{turn}-{side}-{shard}"
                    seconds = encoded(folder / f"{side}", dest, shard, threads)
                    times.setdefault((side, shard), []).append(1000 * seconds / SIDES[side])
    found = [
        {"side": side, "shard_size": shard, "milliseconds": round(statistics.median(each), 3),
         "least": round(min(each), 3), "most": round(max(each), 3)}
        for (side, shard), each in times.items()
    ]  # fmt: skip
    record("overhead-cpu", {"threads": threads, "pictures": found})
    print(json.dumps(found, indent=1))


def written(folder: Path, side: int, count: int) -> None:
    folder.mkdir()
    data = [photo for photo, _ in zip(photos(side, side), range(2), strict=False)]
    for index in range(count):
        data[index % 2].save(folder / f"{index}.jpg", quality=90)


def encoded(source: Path, dest: Path, shard: int, threads: int) -> float:
    """Seconds of the run itself."""
    settings = EncodeSettings(Prep(), workers=threads, shard_size=shard)
    plan = plan_encode([source], dest, settings)
    checkpoint = SimpleNamespace(name="none", fingerprint="0" * 64)
    return encode(plan, checkpoint, ThisProcess(NoNetwork()), advance=lambda _: None).seconds


if __name__ == "__main__":
    main()

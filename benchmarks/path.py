"""Times the path from JPEG files to latents and back to PNGs, by the number of file threads.

python benchmarks/path.py [--device cuda] [--workers 1,2,4]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from networks import record
from PIL import Image

PHOTOS = sorted((Path(__file__).parents[1] / "examples" / "photos").glob("*.[jpw]*[pg]"))
SIDE = 1024
COPIES = 256  # as many as the longest run takes: 256 megapixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--copies", default=COPIES, type=int)
    given = parser.parse_args()
    measure(given.device, [int(number) for number in given.workers.split(",")], given.copies)


def measure(device: str, workers: Sequence[int], copies: int = COPIES) -> None:
    """Records what `stae bench --path` says of JPEGs of one megapixel, as each run ends."""
    runs: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        _fill(Path(folder), copies)
        for number in workers:
            print(f"timing the path with {number} threads", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", "stae_cli", "bench", "--path", folder, "--json"]
            command += ["--device", device, "--workers", str(number), "--weights", "builtin"]
            ran = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            runs.append(json.loads(ran.stdout))
            record(f"path-{device.partition(':')[0]}", {"runs": runs})


def _fill(folder: Path, copies: int) -> None:
    for index in range(copies):
        with Image.open(PHOTOS[index % len(PHOTOS)]) as image:
            turned = image.convert("RGB").rotate(index % 5, Image.Resampling.BILINEAR)
        turned.resize((SIDE, SIDE)).save(folder / f"{index:04}.jpg", quality=90)


if __name__ == "__main__":
    main()

"""Times the path from JPEG files to latents and back to PNGs, by the number of file threads.

python benchmarks/path.py [--device cuda] [--workers 1,2,4]
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from time import monotonic

from command import CommandError, stae_json
from PIL import Image
from record import Recorder, add_options, record, recorder

PHOTOS = sorted((Path(__file__).parents[1] / "examples" / "photos").glob("*.[jpw]*[pg]"))
SIDE = 1024
COPIES = 256  # as many as the longest run takes: 256 megapixels
FEW = 64  # for one thread, which PNGs take long


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--weights", default="builtin")
    parser.add_argument("--copies", default=COPIES, type=int)
    parser.add_argument("--side", default=SIDE, type=int)
    parser.add_argument("--within", default=1e6, type=float, help="seconds for all of it")
    add_options(parser)
    given = parser.parse_args()
    failures = measure(
        given.device, [int(number) for number in given.workers.split(",")], given.copies,
        weights=given.weights, side=given.side, within=given.within, record=recorder(given),
    )  # fmt: skip
    sys.exit(1 if failures else 0)


def measure(
    device: str,
    workers: Sequence[int],
    copies: int = COPIES,
    *,
    weights: str = "builtin",
    side: int = SIDE,
    within: float = 1e6,
    record: Recorder = record,
) -> dict[str, str]:
    """Records what `stae bench --path` says of JPEGs of one megapixel, as each run ends.

    Returns:
        Which numbers of threads could not be timed, and why.
    """
    end = monotonic() + within
    runs: list[dict] = []
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        few, many = Path(folder, "jpegs", "few"), Path(folder, "jpegs")
        write_jpegs(few, range(min(FEW, copies)), side)
        write_jpegs(many / "more", range(FEW, copies), side)
        for number in workers:
            print(f"timing the path with {number} threads", file=sys.stderr, flush=True)
            try:
                runs.append(stae_json(
                    "bench", "--path", few if number == 1 else many, "--device", device,
                    "--workers", number, "--weights", weights, timeout=end - monotonic(),
                ))  # fmt: skip
            except CommandError as error:
                failures[f"{number} threads"] = str(error)
                print(error, file=sys.stderr, flush=True)
            record(f"path-{device.partition(':')[0]}", {"runs": runs, "failures": failures})
    return failures


def write_jpegs(folder: Path, numbers: Sequence[int], side: int) -> None:
    """Photos, none like another, of `side` pixels on a side, made by all cores at once."""
    folder.mkdir(parents=True)

    def write(number: int) -> None:
        photo = photo_of(PHOTOS[number % len(PHOTOS)])
        turned = photo.rotate(number * 0.37 % 360, Image.Resampling.BILINEAR)
        turned.resize((side, side)).save(folder / f"{number:05}.jpg", quality=90)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, numbers))


@cache
def photo_of(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


if __name__ == "__main__":
    main()

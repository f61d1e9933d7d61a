"""Times the path from JPEG files to latents and back to PNGs, by the number of file threads."""

import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from PIL import Image

from benchmarks.record import PHOTOS, CommandError, options, record, stae_json

FEW = 64  # pictures for one thread, which writes PNGs slowly


def main(argv: Sequence[str] | None = None) -> None:
    parser = options("path", __doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", default="1,2,4", help="numbers of threads")
    parser.add_argument("--weights", default="builtin")
    parser.add_argument("--copies", default=256, type=int, help="pictures")
    parser.add_argument("--side", default=1024, type=int, help="of a picture, in pixels")
    given = parser.parse_args(argv)
    about = {"side": given.side, "runs": [], "failures": {}}
    with tempfile.TemporaryDirectory() as folder:
        few, many = Path(folder, "jpegs", "few"), Path(folder, "jpegs")
        write_jpegs(few, range(min(FEW, given.copies)), given.side)
        write_jpegs(many / "more", range(FEW, given.copies), given.side)
        for number in map(int, given.workers.split(",")):
            print(f"timing the path with {number} threads", file=sys.stderr, flush=True)
            command = ["bench", "--path", few if number == 1 else many, "--workers", number]
            try:
                run = stae_json(*command, "--device", given.device, "--weights", given.weights)
                about["runs"].append(run)
            except CommandError as error:
                about["failures"][f"{number} threads"] = str(error)
                print(error, file=sys.stderr, flush=True)
            record(given, f"path-{given.device.partition(':')[0]}", about, given.device)
    sys.exit(1 if about["failures"] else 0)


def write_jpegs(folder: Path, numbers: Sequence[int], side: int) -> None:
    """Different photos of `side` pixels on a side, made on all cores."""
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

"""Times the path around the network in pairs, and measures the memory of whole runs.

Reading against the bare JPEG codec, PNG writing against its bare writer, a folder of mixed sizes
against one of equal sizes; and the memory of long runs and of one very large image.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.record import PHOTOS, compared, environment, options, record, seconds_of, stae_json
from stae_cli.flow.read_ahead import READ_AHEAD_BYTES, read_ahead
from stae_cli.flow.write_behind import WriteBehind
from stae_cli.images.buffers import Buffers
from stae_cli.images.read import open_image
from stae_cli.images.resize import Prep, prepare
from stae_cli.images.write import _filtered, write_picture
from stae_cli.storage.destination import FolderDestination

THREADS = os.cpu_count() or 1
KINDS = ("mixed", "equal")
PEAK = (  # runs a command, and prints the peak memory of the process
    "import resource, sys; from stae_cli.cli.main import main; code = main(sys.argv[1:]); "
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = options("files", __doc__)
    parser.add_argument("--seconds", default=20.0, type=float, help="for the rounds of each pair")
    parser.add_argument("--weights", default="builtin")
    parser.add_argument("--quick", action="store_true", help="little of all: try this script")
    given = parser.parse_args(argv)
    few = 2 if given.quick else None
    side = 8 if given.quick else 40
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        results = {
            "threads": THREADS,
            "reading": reading(place / "reading", few or 96, given.seconds),
            "png writing": png_writing(place / "png", few or 48, given.seconds),
            "mixed sizes": mixed_sizes(place / "mixed", few or 24, side, given),
            "memory": memory(place / "memory", given),
        }
    record(given, "files-cpu", results)


def photos(width: int, height: int) -> Iterator[Image.Image]:
    """Two example photos, over and over, resized."""
    sources = [Image.open(photo).convert("RGB") for photo in PHOTOS[:2]]
    while True:
        for source in sources:
            yield source.resize((width, height), Image.Resampling.BICUBIC)


def reading(folder: Path, count: int, seconds: float) -> dict:
    """JPEGs of a megapixel: the codec alone, and files to prepared pixels."""
    import simplejpeg

    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 1
    for index, photo in enumerate(islice(photos(1152, 864), count)):
        photo.save(folder / f"{index}.jpg", quality=90, exif=exif)
    files, buffers = sorted(folder.iterdir()), Buffers()

    def codec_alone() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda path: simplejpeg.decode_jpeg(path.read_bytes()), files))

    def read(path, reserve):
        with path.open("rb") as file:
            image = open_image(file, name=path.name, buffers=buffers)
            reserve(image.width * image.height * 3)
            return prepare(image, Prep(), patch=8)

    def stae() -> None:
        for _ in read_ahead(files, read, threads=THREADS, max_bytes=READ_AHEAD_BYTES):
            pass

    tasks = {"codec alone": seconds_of(codec_alone), "stae": seconds_of(stae)}
    return compared("codec alone", "stae", tasks, seconds)


def png_writing(folder: Path, count: int, seconds: float) -> dict:
    """Pictures of a megapixel: filter, deflate and one plain write; and whole PNGs, renamed."""
    from isal import isal_zlib

    folder.mkdir()
    pictures = [np.asarray(photo) for photo in islice(photos(1152, 864), count)]

    def pack(index: int) -> None:
        packer = isal_zlib.compressobj(1)
        parts = [packer.compress(band) for band in _filtered(pictures[index])]
        (folder / f"{index}.bare").write_bytes(b"".join([*parts, packer.flush()]))

    def writer_alone() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(pack, range(count)))

    destination = FolderDestination(folder)

    def write(index: int, writer: WriteBehind) -> int:
        with destination.writing(f"{index}.png", writer.turn) as path:
            write_picture(path, pictures[index], format="png", record="{}")
        return 1

    def stae() -> None:
        with WriteBehind(threads=THREADS, max_bytes=1 << 28, on_written=lambda _: None) as writer:
            for index, pixels in enumerate(pictures):
                writer.submit(pixels.nbytes, lambda index=index: write(index, writer))

    tasks = {"writer alone": seconds_of(writer_alone), "stae": seconds_of(stae)}
    return compared("writer alone", "stae", tasks, seconds)


def mixed_sizes(folder: Path, count: int, side: int, given) -> dict[str, dict]:
    """Pictures of one size, and pictures each of its own size with as many patches in all."""
    generator, seen = random.Random(0), {(0, 0), (side, side)}
    for kind in KINDS:
        (folder / kind).mkdir(parents=True)
        for index, photo in enumerate(islice(photos(8 * side, 8 * side), count)):
            width = height = side
            while kind == "mixed" and (width, height) in seen:
                width = generator.randint(side // 2, 2 * side)
                height = round(side * side / width)
            seen.add((width, height))
            photo.resize((8 * width, 8 * height)).save(folder / kind / f"{index}.jpg", quality=90)
    weights = ("--weights", given.weights)
    encode = {k: run_of("encode", folder / k, folder / f"l-{k}", *weights) for k in KINDS}
    decode = {k: run_of("decode", folder / f"l-{k}", folder / f"p-{k}", *weights) for k in KINDS}
    return {
        "encode": compared(*KINDS, encode, given.seconds),
        "decode": compared(*KINDS, decode, given.seconds),
    }


def run_of(command: str, source: Path, dest: Path, *more: object) -> Callable[[], float]:
    """A run that returns the seconds it reports itself."""

    def run() -> float:
        shutil.rmtree(dest, ignore_errors=True)
        return float(stae_json(command, source, dest, *more)["seconds"])

    return run


def memory(folder: Path, given) -> dict[str, float]:
    """Peak megabytes of whole processes: few photos, many, and one of 100 megapixels."""
    result = {}
    for count in (2,) if given.quick else (200, 2000):
        many = folder / str(count)
        many.mkdir(parents=True)
        for index, photo in enumerate(islice(photos(96, 64), min(8, count))):
            photo.save(many / f"{index}.jpg")
        for index in range(8, count):
            shutil.copy(many / f"{index % 8}.jpg", many / f"{index}.jpg")
        result[f"encode {count} photos"] = peak("encode", many, folder / f"l-{count}", given)
    sizes = {"small": (64, 64)} | ({} if given.quick else {"100 megapixels": (12000, 8400)})
    for name, size in sizes.items():
        (folder / name).mkdir()
        next(photos(*size)).save(folder / name / "photo.jpg", quality=90)
        latents = folder / f"latents {name}"
        result[f"encode {name}"] = peak("encode", folder / name, latents, given)
        result[f"decode {name}"] = peak("decode", latents, folder / f"pictures {name}", given)
    return result


def peak(command: str, source: Path, dest: Path, given) -> float:
    words = [command, source, dest, "--quiet", "--weights", given.weights]
    process = [sys.executable, "-c", PEAK, *map(str, words)]
    ran = subprocess.run(process, env=environment(), stdout=subprocess.PIPE, text=True, check=True)
    return round(int(ran.stdout.split()[-1]) * 1024 / 1e6)


if __name__ == "__main__":
    main()

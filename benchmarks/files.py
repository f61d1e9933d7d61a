"""Times the path around the network in pairs, and records the ratios.

Reading against the bare JPEG codec, PNG writing against its bare writer, a folder of mixed sizes
against one of equal sizes, and the memory of long runs and of one very large image.

python benchmarks/files.py
"""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg
from isal import isal_zlib
from PIL import Image
from record import record

from stae_cli.flow.read_ahead import READ_AHEAD_BYTES, read_ahead
from stae_cli.flow.write_behind import WriteBehind
from stae_cli.images.buffers import Buffers
from stae_cli.images.resize import Prep
from stae_cli.images.write import _filtered, write_picture
from stae_cli.runs.read_picture import read_picture
from stae_cli.storage.destination import FolderDestination
from stae_cli.storage.names import plan_outputs
from stae_cli.storage.sources import list_sources

EXAMPLES = Path(__file__).parents[1] / "examples" / "photos"
THREADS = os.cpu_count() or 1
ROUNDS = 5


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        results = {
            "threads": THREADS,
            "reading": reading(place / "reading"),
            "png writing": png_writing(place / "png"),
            "mixed sizes": mixed_sizes(place / "mixed"),
            "memory": memory(place / "memory"),
        }
    record("files-cpu", results)
    print(json.dumps(results, indent=1))


def photos(width: int, height: int):
    """The example photos, over and over, resized."""
    sources = [Image.open(EXAMPLES / n).convert("RGB") for n in ("kodim04.png", "kodim23.png")]
    while True:
        for source in sources:
            yield source.resize((width, height), Image.Resampling.BICUBIC)


def paired(**runs) -> dict[str, float]:
    """Median seconds of each, one after another in every round, and the first over the second."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    first, second = times.values()
    result = {name: round(statistics.median(values), 4) for name, values in times.items()}
    ratio = statistics.median(a / b for a, b in zip(first, second, strict=True))
    return {**result, "first over second": round(ratio, 3)}


def reading(folder: Path) -> dict[str, float]:
    """96 JPEGs of a megapixel: the codec alone, and files to prepared pixels."""
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 1
    for index, photo in zip(range(96), photos(1152, 864), strict=False):
        photo.save(folder / f"{index}.jpg", quality=90, exif=exif)
    files = sorted(folder.iterdir())
    plan = plan_outputs(list_sources([folder], None, suffixes=[".jpg"]).entries, ".x")
    buffers = Buffers()

    def decode(path: Path) -> None:
        simplejpeg.decode_jpeg(path.read_bytes(), colorspace="RGB")

    def codec_alone() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(decode, files))

    def read(planned, reserve):
        return read_picture(planned.entry, Prep(), patch=8, reserve=reserve, buffers=buffers)

    def stae() -> None:
        for _ in read_ahead(plan, read, threads=THREADS, max_bytes=READ_AHEAD_BYTES):
            pass

    return paired(codec_alone=codec_alone, stae=stae)


def png_writing(folder: Path) -> dict[str, float]:
    """48 pictures of a megapixel: filter, deflate and one plain write; and whole PNGs, renamed."""
    folder.mkdir()
    pictures = [np.asarray(p) for p, _ in zip(photos(1152, 864), range(48), strict=False)]

    def pack(index: int) -> None:
        packer = isal_zlib.compressobj(1)
        parts = [packer.compress(band) for band in _filtered(pictures[index])]
        (folder / f"{index}.bare").write_bytes(b"".join([*parts, packer.flush()]))

    def writer_alone() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(pack, range(len(pictures))))

    destination = FolderDestination(folder)

    def write(index: int) -> int:
        with destination.writing(f"{index}.png") as path:
            write_picture(path, pictures[index], format="png", record="{}")
        return 1

    def stae() -> None:
        with WriteBehind(threads=THREADS, max_bytes=1 << 28, on_written=lambda _: None) as writer:
            for index, pixels in enumerate(pictures):
                writer.submit(pixels.nbytes, lambda index=index: write(index))

    return paired(writer_alone=writer_alone, stae=stae)


def mixed_sizes(folder: Path) -> dict[str, dict[str, float]]:
    """24 pictures of one size, and 24 each of its own size with as many patches in all."""
    side, generator, seen = 40, random.Random(0), {(0, 0)}
    for kind in ("equal", "mixed"):
        (folder / kind).mkdir(parents=True)
        for index, photo in zip(range(24), photos(8 * side, 8 * side), strict=False):
            width = height = side
            while kind == "mixed" and (width, height) in seen | {(side, side)}:
                width = generator.randint(side // 2, 2 * side)
                height = round(side * side / width)
            seen.add((width, height))
            photo.resize((8 * width, 8 * height)).save(folder / kind / f"{index}.jpg", quality=90)
    encode = {kind: run_of("encode", folder / kind, folder / f"l-{kind}") for kind in KINDS}
    decode = {kind: run_of("decode", folder / f"l-{kind}", folder / f"p-{kind}") for kind in KINDS}
    return {"encode": compared(encode), "decode": compared(decode)}


KINDS = ("mixed", "equal")


def run_of(command: str, source: Path, dest: Path):
    """A run that gives the seconds it reports itself, without starting Python and torch."""

    def run() -> float:
        shutil.rmtree(dest, ignore_errors=True)
        return float(json.loads(stae(command, source, dest).stdout)["seconds"])

    return run


def compared(runs) -> dict[str, float]:
    times = {kind: [] for kind in runs}
    for _ in range(ROUNDS):
        for kind, run in runs.items():
            times[kind].append(run())
    result = {kind: round(statistics.median(values), 3) for kind, values in times.items()}
    ratios = [a / b for a, b in zip(times["mixed"], times["equal"], strict=True)]
    return {**result, "mixed over equal": round(statistics.median(ratios), 3)}


def memory(folder: Path) -> dict[str, float]:
    """Peak megabytes of whole processes: few photos, many, and one of 100 megapixels."""
    result = {}
    for count in (200, 2000):
        many = folder / str(count)
        many.mkdir(parents=True)
        for index, photo in zip(range(8), photos(96, 64), strict=False):
            photo.save(many / f"{index}.jpg")
        for index in range(8, count):
            shutil.copy(many / f"{index % 8}.jpg", many / f"{index}.jpg")
        result[f"encode {count} photos"] = peak("encode", many, folder / f"l-{count}")
    for name, size in (("small", (64, 64)), ("100 megapixels", (12000, 8400))):
        (folder / name).mkdir()
        next(photos(*size)).save(folder / name / "photo.jpg", quality=90)
        result[f"encode {name}"] = peak("encode", folder / name, folder / f"l-{name}")
        result[f"decode {name}"] = peak("decode", folder / f"l-{name}", folder / f"p-{name}")
    return result


def peak(command: str, source: Path, dest: Path) -> float:
    program = (
        "import resource, sys; from stae_cli.cli.main import main; code = main(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
    )
    ran = stae(command, source, dest, start=["-c", program], quiet="--quiet")
    return round(int(ran.stdout.split()[-1]) * 1024 / 1e6)


def stae(command, source, dest, *, start=("-m", "stae_cli"), quiet="--json"):
    weights = ["--weights", "builtin"] if command == "encode" else []
    return subprocess.run(
        [sys.executable, *start, command, source, dest, quiet, *weights],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()

"""Many tiny images: seconds of planning, memory of encoding, files a second of a rerun.

PYTHONPATH=. python benchmarks/scale.py [IMAGES]
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from record import record

from tests.pictures import noise
from tests.seeded import tiny_checkpoint

ENCODE = """
import resource, sys, time
from stae_cli.cli.main import main
code = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""
PLAN = """
import sys, time
from pathlib import Path
from stae_cli.images.resize import Prep
from stae_cli.runs.encode_plan import EncodeSettings, plan_encode
started = time.perf_counter()
plan = plan_encode([Path(sys.argv[1])], Path(sys.argv[2]), EncodeSettings(Prep()))
print(time.perf_counter() - started)
"""
LAYOUTS = {"files": [], "shards": ["--shard-size", "256"]}


def main(count: int = 100_000) -> None:
    # On a disk: the folder for temporary files is often memory.
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        place = Path(folder)
        weights = tiny_checkpoint(place / "tiny.safetensors")
        for number in (count // 10, count):
            write_images(place / str(number), number)
        results = {name: measured(place, name, count, weights) for name in LAYOUTS}
        result = {"images": count, "few": count // 10, **results}
    record("scale", result)
    print(json.dumps(result, indent=1))


def measured(place: Path, name: str, count: int, weights: Path) -> dict[str, float]:
    """Megabytes, seconds, and files a second of one layout."""
    result = {}
    for label, number in (("few", count // 10), ("all", count)):
        dest = place / f"{name} {number}"
        options = [str(place / str(number)), str(dest), "--weights", str(weights), "--json"]
        *_, peak = run(ENCODE, "encode", *options, *LAYOUTS[name])
        result[f"MB to encode {label}"] = round(int(peak) * 1024 / 1e6)
    result["seconds to plan"] = round(float(run(PLAN, place / str(count), dest)[-1]), 2)
    started = time.perf_counter()
    *lines, peak = run(ENCODE, "encode", *options, *LAYOUTS[name])
    report = json.loads("\n".join(lines))
    assert (report["done"], report["skipped"]) == (0, count)
    result["seconds to rerun, with start-up"] = round(time.perf_counter() - started, 2)
    result["files a second of a rerun"] = round(count / report["seconds"])
    result["MB to rerun"] = round(int(peak) * 1024 / 1e6)
    return result


def run(program: str, *arguments: object) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return ran.stdout.splitlines()


def write_images(folder: Path, count: int) -> None:
    """A hundred images, and hard links to them, a thousand to a folder."""
    (folder / "0").mkdir(parents=True)
    originals = []
    for number in range(min(count, 100)):
        originals.append(folder / "0" / f"{number}.jpg")
        Image.fromarray(noise(8 + number % 20, 8 + number % 17, number)).save(originals[-1])
    for number in range(100, count):
        part = folder / str(number // 1000)
        part.mkdir(exist_ok=True)
        (part / f"{number}.jpg").hardlink_to(originals[number % 100])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

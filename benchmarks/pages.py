"""The page of `roundtrip` with many pictures, in headless Chromium: loading, scrolling, sorting.

Thumbnails are those of the example photos, linked under as many names as there are pictures. A
long task keeps the page from answering for 50 ms or more; a phone is a window of 390 pixels, a slow
one is on a processor slowed down four times. Roundtrips of PHOTOS are timed beside `encode`
and `decode`, in turn. Needs `pip install selenium`, and Chromium with its driver.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from selenium import webdriver

from benchmarks.record import PHOTOS, ROOT, environment, options, record, seconds_of
from stae_cli.images.read import IMAGE_SUFFIXES, read_image
from stae_cli.images.write import write_thumbnail
from stae_cli.metrics import Score
from stae_cli.report.page import THUMBNAIL, Column, Photo, Report, render
from stae_cli.storage.sources import list_sources
from tests.browser import started

WINDOWS = {"desktop": (1440, 1000, 1), "phone": (390, 844, 1), "slow phone": (390, 844, 4)}
WATCH = """
window.tasks = [];
new PerformanceObserver((list) => { for (const e of list.getEntries()) tasks.push(e.duration); })
  .observe({type: "longtask", buffered: true});
window.first = null;
const seen = (event) => {
  if (event.target.tagName !== "IMG") return;
  window.first = performance.now();
  document.removeEventListener("load", seen, true);
};
document.addEventListener("load", seen, true);
"""
SCROLL = """
const [seconds, done] = arguments, from = performance.now();
const tall = document.scrollingElement.scrollHeight;
tasks.length = 0;
let frames = 0;
const step = () => {
  const share = (performance.now() - from) / 1000 / seconds;
  scrollTo(0, tall * Math.min(share, 1));
  frames += 1;
  if (share < 1) requestAnimationFrame(step);
  else setTimeout(() => done([frames / seconds, Math.max(0, ...tasks)]), 300);
};
step();
"""
SORT = """
const done = arguments[0], sort = document.getElementById("sort"), from = performance.now();
scrollTo(0, 0);
sort.value = "name";
sort.dispatchEvent(new Event("change"));
requestAnimationFrame(() => setTimeout(() => done(performance.now() - from)));
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = options("pages", __doc__)
    parser.add_argument("photos", nargs="?", type=Path, default=PHOTOS[0].parent)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6, help="to scroll through them")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        page = many(Path(folder), given.pictures)
        result = {
            "pictures": given.pictures,
            "seconds": given.seconds,
            "bytes": page.stat().st_size,
            "windows": [watched(page, name, given.rounds, given.seconds) for name in WINDOWS],
            "roundtrip": timed(given.photos, Path(folder), given.rounds),
        }
    record(given, "pages-cpu", result)


def many(folder: Path, count: int) -> Path:
    """A page of `count` pictures and two autoencoders."""
    thumbnails = []
    for number, photo in enumerate(PHOTOS):
        thumbnails.append(folder / f"{number}.jpg")
        write_thumbnail(thumbnails[-1], read_image(photo))
    names = [f"folder-{n % 20:02}/photo-{n:06}.jpg" for n in range(count)]
    for number, name in enumerate(names):
        path = folder / f"{name}.{THUMBNAIL}"
        path.parent.mkdir(exist_ok=True)
        path.hardlink_to(thumbnails[number % len(thumbnails)])
    errors = np.random.default_rng(0).lognormal(-6, 0.7, (count, 2))
    columns = [Column(name, f"{name}.png", "16 channels at 1/8", 10**7) for name in ("a", "b")]
    photos = [
        Photo(name, 768, 512, [Score(float(mse), 30.0, 0.9, 768 * 512) for mse in row])
        for name, row in zip(names, errors, strict=True)
    ]
    page = folder / "index.html"
    page.write_text(render(Report(columns, photos, ())), encoding="utf-8")
    return page


def watched(page: Path, name: str, rounds: int, seconds: float) -> dict:
    """Medians over several loads: milliseconds, frames a second, and the longest tasks of all."""
    width, height, slower = WINDOWS[name]
    found = []
    with started() as browser:
        driver: webdriver.Chrome = browser.driver
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
        driver.execute_cdp_cmd("Emulation.setCPUThrottlingRate", {"rate": slower})
        for _ in range(rounds):
            browser.open(page.as_uri(), width=width, height=height)
            first = browser.wait("window.first")
            browser.driver.execute_async_script("setTimeout(arguments[0], 1000)")
            loading = browser.run("return Math.max(0, ...tasks)")
            frames, scrolling = driver.execute_async_script(SCROLL, seconds)
            sorting = driver.execute_async_script(SORT)
            found.append((first, loading, frames, scrolling, sorting))
    first, loading, frames, scrolling, sorting = zip(*found, strict=True)
    return {
        "name": name,
        "first_picture_ms": median(first),
        "longest_task_loading_ms": max(loading),
        "frames_per_second_scrolling": median(frames),
        "longest_task_scrolling_ms": max(scrolling),
        "sorting_ms": median(sorting),
    }


def timed(photos: Path, folder: Path, rounds: int) -> dict:
    """Seconds of whole processes, and the ratio in each round."""
    weights = ("--weights", "builtin")
    seconds = []
    for number in range(rounds):
        made = folder / f"round-{number}"
        commands = [
            ("encode", photos, made / "latents", *weights),
            ("decode", made / "latents", made / "pictures"),
            ("roundtrip", photos, made / "report", *weights),
        ]
        seconds.append([seconds_of(partial(stae, *command))() for command in commands])
    encode, decode, roundtrip = (median(each) for each in zip(*seconds, strict=True))
    return {
        "photos": len(list_sources([photos], None, suffixes=IMAGE_SUFFIXES).entries),
        "encode_s": encode,
        "decode_s": decode,
        "roundtrip_s": roundtrip,
        "ratio": median(r / (e + d) for e, d, r in seconds),
    }


def stae(*arguments: object) -> None:
    """One command in a process of its own."""
    command = [sys.executable, "-m", "stae_cli", *map(str, arguments), "--quiet"]
    subprocess.run(command, cwd=ROOT, env=environment(), check=True)


if __name__ == "__main__":
    main()

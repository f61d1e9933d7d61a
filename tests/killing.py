"""Killing encodes at random moments, and whether reruns leave what an undisturbed run does."""

from __future__ import annotations

import io
import os
import random
import signal
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tests.launcher import Launcher
from tests.pictures import noise

LAYOUTS = {
    "files": ("folder", 0),
    "shards": ("folder", 64),
    "tar": ("tars", 0),
    "tar to shards": ("tars", 64),
}


@dataclass(frozen=True)
class Outcome:
    """What a killed and completed encode left."""

    undisturbed: bool  # the same outputs, byte for byte, as a run that nothing disturbed
    survivors: int  # outputs that were there after the last kill
    redone: list[str]  # those among them that the rerun wrote again
    temporaries: list[str]
    kills: int  # how many kills struck a living process
    last_code: int


class Killing:
    """Encodes `count` tiny images of a folder or of tars, again and again.

    Args:
        place: an empty folder to work in.
        count: of images.
        weights: a checkpoint.
    """

    def __init__(self, place: Path, launcher: Launcher, weights: Path, *, count: int) -> None:
        self.place, self.launcher, self.weights = place, launcher, weights
        write_images(place / "folder", place / "tars", count)
        self.whole: dict[str, dict[str, bytes]] = {}
        self.seconds: dict[str, float] = {}
        self.runs = 0

    def outcome(self, layout: str, *, ranks: int, kills: int, seed: int) -> Outcome:
        """Kills runs at moments drawn from the seed, then lets one finish.

        Half of the kills strike one rank alone, and the others finish.
        """
        whole = self._whole(layout)
        generator = random.Random(f"{layout} {ranks} {seed}")
        self.runs += 1
        dest = self.place / f"out-{self.runs}"
        struck = 0
        for _ in range(kills):
            started = self._start(layout, dest, ranks)
            time.sleep(generator.uniform(0.0, self.seconds[layout]))
            victims = started if generator.random() < 0.5 else [generator.choice(started)]
            for process in victims:
                os.kill(process, signal.SIGKILL)
            struck += sum(self.launcher.wait(process) == -signal.SIGKILL for process in started)
        survived = {path: path.stat().st_mtime_ns for path in dest.rglob("*.safetensors")}
        codes = [self.launcher.wait(process) for process in self._start(layout, dest, ranks)]
        names = {path: path.relative_to(dest).as_posix() for path in survived}
        return Outcome(
            undisturbed=contents(dest) == whole,
            survivors=len(survived),
            redone=[names[p] for p, before in survived.items() if p.stat().st_mtime_ns != before],
            temporaries=[path.name for path in dest.rglob("*") if path.name.endswith(".tmp")],
            kills=struck,
            last_code=max(codes, key=abs),
        )

    def together(self, layout: str) -> tuple[list[int], bool]:
        """Two processes do the same at once, after a run in which every tenth image was damaged.

        Returns their exit codes, and whether DEST is as an undisturbed run leaves it.
        """
        whole, dest = self._whole(layout), self.place / f"together {layout}"
        with damaged(sorted(self.place.glob("folder/*.png"))[::10]):
            (process,) = self._start(layout, dest, 1)
            assert self.launcher.wait(process) == 3
        both = self._start(layout, dest, 1) + self._start(layout, dest, 1)
        codes = [self.launcher.wait(process) for process in both]
        return codes, contents(dest) == whole

    def _whole(self, layout: str) -> dict[str, bytes]:
        if layout not in self.whole:
            dest = self.place / f"whole {layout}"
            started = time.monotonic()
            (process,) = self._start(layout, dest, 1)
            assert self.launcher.wait(process) == 0, (self.place / "log-0").read_text()
            self.seconds[layout] = time.monotonic() - started
            self.whole[layout] = contents(dest)
        return self.whole[layout]

    def _start(self, layout: str, dest: Path, ranks: int) -> list[int]:
        source, shard_size = LAYOUTS[layout]
        arguments = ["encode", self.place / source, dest, "--weights", self.weights, "--quiet"]
        arguments += ["--batch-patches", 256, "--shard-size", shard_size]
        return [
            self.launcher.start(
                *arguments,
                log=self.place / f"log-{rank}",
                environment={
                    "RANK": str(rank),
                    "WORLD_SIZE": str(ranks),
                    "MASTER_ADDR": "localhost",
                },
            )
            for rank in range(ranks)
        ]


@contextmanager
def damaged(images: Sequence[Path]) -> Iterator[None]:
    """Images cut short for a while; then they are as before, to the time of their last change."""
    before = [(path, path.stat(), path.read_bytes()) for path in images]
    for path, _, data in before:
        path.write_bytes(data[:40])
    try:
        yield
    finally:
        for path, stat, data in before:
            path.write_bytes(data)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def contents(dest: Path) -> dict[str, bytes]:
    """Every file of a DEST but those that each process writes for itself."""
    return {
        path.relative_to(dest).as_posix(): path.read_bytes()
        for path in dest.rglob("*")
        if path.is_file() and path.suffix != ".jsonl"
    }


def write_images(folder: Path, tars: Path, count: int) -> None:
    """Writes `count` tiny PNGs, to the folder and its subfolder and as four tars."""
    (folder / "sub").mkdir(parents=True)
    tars.mkdir()
    for part in range(4):
        with tarfile.open(tars / f"part-{part}.tar", "w") as tar:
            for number in range(part, count, 4):
                file = io.BytesIO()
                Image.fromarray(noise(9 + number % 23, 31 - number % 19, number)).save(file, "PNG")
                name = f"{'sub/' * (number % 5 == 0)}p{number}.png"
                (folder / name).write_bytes(file.getvalue())
                info = tarfile.TarInfo(name)
                info.size = file.tell()
                file.seek(0)
                tar.addfile(info, file)

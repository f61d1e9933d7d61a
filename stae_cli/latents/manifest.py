"""The manifest of a sharded run: which shard holds which key, as lines of JSON in any order."""

from __future__ import annotations

import json
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

from stae_cli.latents.info import LatentInfo
from stae_cli.storage.destination import Destination
from stae_cli.storage.entry import Problem
from stae_cli.storage.shares import Share, remove_outdated, shared_lines

NAME = "manifest"
MEMORY_BYTES = 16 << 20  # more than that waits on disk


@dataclass(frozen=True, slots=True)
class ManifestLine:
    """The shard that a manifest gives for a key; `manifest` is the name of its file."""

    manifest: str
    key: str
    shard: str


def read_manifests(destination: Destination) -> Iterator[ManifestLine | Problem]:
    """The lines of all manifests of DEST, as `shared_lines` reads them."""
    return shared_lines(
        destination,
        NAME,
        lambda file, row: ManifestLine(file, str(row["key"]), str(row["shard"])),
    )


@dataclass
class _Block:
    """Lines of one shard, which are added together: their bytes in a temporary file."""

    shard: str
    begin: int
    end: int

    def place(self) -> tuple[str, int, str]:
        """Orders shards by their folder, then by number."""
        folder, _, name = self.shard.rpartition("/")
        return folder, len(name), name


class Manifest:
    """Which latents one process's part of a run holds, collected as it goes.

    It is written when the part is finished, and removed when the shards begin to change: a manifest
    that exists is right.
    """

    def __init__(self, destination: Destination, share: Share) -> None:
        self.destination, self.share = destination, share
        self._lines = tempfile.SpooledTemporaryFile(MEMORY_BYTES)  # noqa: SIM115
        weakref.finalize(self, self._lines.close)
        self._outdated = False
        self._blocks: list[_Block] = []

    def add(self, key: str, shard: str, info: LatentInfo) -> None:
        """Adds one latent of a shard, whose name is relative to DEST."""
        line = {"key": key, "shard": shard, "width": info.width, "height": info.height}
        self.extend(json.dumps(line).encode() + b"\n")

    def extend(self, lines: bytes) -> None:
        """Adds lines from another process's `take`."""
        with self.destination.reporting(self.name):
            for line in lines.splitlines(keepends=True):
                shard, begin = str(json.loads(line)["shard"]), self._lines.tell()
                self._lines.write(line)
                if self._blocks and self._blocks[-1].shard == shard:
                    self._blocks[-1].end = begin + len(line)
                else:
                    self._blocks.append(_Block(shard, begin, begin + len(line)))

    def take(self) -> bytes:
        """Removes and returns what was added so far, for another process's `extend`."""
        with self.destination.reporting(self.name):
            self._lines.seek(0)
            lines = self._lines.read()
            self._lines.seek(0)
            self._lines.truncate()
        self._blocks.clear()
        return lines

    def outdate(self) -> None:
        """Removes what the last run wrote; called before a shard changes."""
        if not self._outdated:
            self._outdated = True
            self.destination.remove(self.name)
            remove_outdated(self.destination, NAME, self.share)

    def write(self) -> None:
        """Writes all that was added in the order of the shards, whole or not at all.

        Raises:
            StaeError: DEST cannot be written to.
        """
        remove_outdated(self.destination, NAME, self.share)
        with self.destination.writing(self.name) as path, path.open("wb") as file:
            for block in sorted(self._blocks, key=_Block.place):
                self._lines.seek(block.begin)
                file.write(self._lines.read(block.end - block.begin))

    def close(self) -> None:
        """Discards what was added."""
        self._lines.close()

    @property
    def name(self) -> str:
        """The name of this process's file."""
        return self.share.file_name(NAME)

"""The grid: one picture of all that a run decoded, for a quick look."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from stae_cli.errors import StaeError
from stae_cli.images.buffers import Pixels
from stae_cli.images.pillow import DAMAGED
from stae_cli.images.write import LONGEST_SIDE, read_picture_record, write_picture
from stae_cli.runs.picture_outputs import PictureOutputs

GRID = "grid"  # its key
GRID_PIXELS = 64_000_000  # of the whole grid, at most
GAP = 2  # black pixels around each picture


@dataclass(frozen=True)
class Grid:
    """A grid that was written at `place`: it has the first `shown` of `total` pictures.

    Nothing was written if it shows none.
    """

    place: str
    shown: int
    total: int


@dataclass(frozen=True)
class _Layout:
    """Cells of equal size in pixels, as square as it goes; the last row may be shorter."""

    count: int
    width: int
    height: int

    @property
    def columns(self) -> int:
        return max(1, math.ceil(math.sqrt(self.count)))

    @property
    def sides(self) -> tuple[int, int]:
        """Width and height of the whole."""
        rows = math.ceil(self.count / self.columns)
        return (
            GAP + self.columns * (self.width + GAP),
            GAP + rows * (self.height + GAP),
        )

    def corner(self, number: int) -> tuple[int, int]:
        """Where the cell of a picture begins, from the left and from the top."""
        row, column = divmod(number, self.columns)
        return GAP + column * (self.width + GAP), GAP + row * (self.height + GAP)


def check_place(outputs: PictureOutputs) -> None:
    """Checks that the grid replaces no file of another program.

    Raises:
        StaeError: one is in its place.
    """
    path = outputs.destination.path(outputs.name(GRID))
    if not outputs.overwrite and path.exists() and read_picture_record(path) is None:
        raise StaeError(
            f"the grid's place is taken: `{path}` is not a picture of stae",
            "move it, or replace it with `--overwrite`",
        )


def write_grid(outputs: PictureOutputs, names: Sequence[str], *, weights_sha256: str) -> Grid:
    """Writes the pictures of a run side by side, as many of the first ones as fit the limit.

    They are read back from DEST, so those of an earlier run are there too. Smaller ones are in the
    middle of their cell.

    Args:
        outputs: where they are, and where the grid goes.
        names: of the pictures, in their order; those that are missing are left out.
        weights_sha256: what the grid records, as all pictures of DEST do.

    Raises:
        StaeError: DEST cannot be written to.
    """
    chosen, total = _fitting(outputs, names)
    if chosen:
        grid = _drawn(outputs, chosen)
        record = json.dumps({"grid": len(chosen), "weights_sha256": weights_sha256})
        with outputs.destination.writing(outputs.name(GRID)) as temporary:
            write_picture(temporary, grid, format=outputs.format, record=record)
    return Grid(outputs.destination.place(outputs.name(GRID)), len(chosen), total)


def _fitting(outputs: PictureOutputs, names: Sequence[str]) -> tuple[list[str], int]:
    """The first pictures that fit into a grid together, and how many there are."""
    present = [name for name in names if outputs.destination.holds(name)]
    chosen: list[str] = []
    width = height = 0
    for name in present:
        try:
            with Image.open(outputs.destination.path(name)) as image:
                width, height = max(width, image.width), max(height, image.height)
        except DAMAGED:  # too large, or replaced meanwhile
            break
        sides = _Layout(len(chosen) + 1, width, height).sides
        if math.prod(sides) > GRID_PIXELS or max(sides) > LONGEST_SIDE[outputs.format]:
            break
        chosen.append(name)
    return chosen, len(present)


def _drawn(outputs: PictureOutputs, names: Sequence[str]) -> Pixels:
    pictures = [outputs.destination.path(name) for name in names]
    sizes = []
    for path in pictures:
        with Image.open(path) as image:
            sizes.append(image.size)
    layout = _Layout(len(names), max(w for w, _ in sizes), max(h for _, h in sizes))
    grid = Image.new("RGB", layout.sides)
    for number, path in enumerate(pictures):
        left, top = layout.corner(number)
        with Image.open(path) as image:
            inside = (layout.width - image.width) // 2, (layout.height - image.height) // 2
            grid.paste(image.convert("RGB"), (left + inside[0], top + inside[1]))
    return np.asarray(grid)

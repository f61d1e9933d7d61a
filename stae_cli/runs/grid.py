"""The grid: one picture of all that a run decoded, for a quick look."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from stae_cli.errors import StaeError
from stae_cli.images.sheet import GRID_STYLE, fitting
from stae_cli.images.write import LONGEST_SIDE, read_picture_record, write_picture
from stae_cli.runs.picture_outputs import PictureOutputs

GRID = "grid"  # its key


@dataclass(frozen=True)
class Grid:
    """A grid that was written at `place`: it has the first `shown` of `total` pictures.

    Nothing was written if it shows none.
    """

    place: str
    shown: int
    total: int


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
    present = [outputs.destination.path(name) for name in names if outputs.destination.holds(name)]
    sheet = fitting(present, GRID_STYLE, longest_side=LONGEST_SIDE[outputs.format])
    shown = len(sheet.paths)
    if shown:
        record = json.dumps({"grid": shown, "weights_sha256": weights_sha256})
        with outputs.destination.writing(outputs.name(GRID)) as temporary:
            write_picture(temporary, sheet.draw(), format=outputs.format, record=record)
    return Grid(outputs.destination.place(outputs.name(GRID)), shown, len(present))

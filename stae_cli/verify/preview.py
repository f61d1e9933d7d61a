"""Previews: pictures of stored latents without the network, and a sheet of all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from stae_cli.cores import usable_cores
from stae_cli.errors import InputError, StaeError
from stae_cli.flow.read_ahead import Reserve, scanning
from stae_cli.flow.write_behind import WriteBehind
from stae_cli.images.buffers import Pixels
from stae_cli.images.sheet import CONTACT_STYLE, fitting
from stae_cli.images.write import LONGEST_SIDE, read_picture_record, write_picture
from stae_cli.latents.format import StoredLatent, is_finite
from stae_cli.latents.listing import LatentListing
from stae_cli.runs.picture_outputs import PictureOutputs
from stae_cli.runs.picture_record import recorded
from stae_cli.runs.tally import problem_or
from stae_cli.storage.entry import Problem, root_id
from stae_cli.storage.names import EXACT
from stae_cli.storage.remote_destination import local_folder
from stae_cli.verify.colours import Components, coloured, components_of
from stae_cli.verify.stats import place_of, refuse_several, survey

SHEET = "contact-sheet"  # its key
SIDE = 256  # pixels: smaller pictures are enlarged by the integer that comes closest
WAITING_BYTES = 64 << 20  # of pictures that wait for the disk
# Fields of a picture's record. It has no `weights_sha256`, so `decode` refuses a DEST of previews.
MARK, ROOT = "preview", "latents_root"


@dataclass(frozen=True)
class PreviewPlan:
    """The latents of `sources` that will be drawn, and where."""

    sources: Sequence[Path | str]
    latents: Sequence[StoredLatent]
    outputs: PictureOutputs

    @property
    def total(self) -> int:
        """How many latents will be read: each one twice."""
        return 2 * len(self.latents)


@dataclass
class Previews:
    """The pictures that were written to `folder`, and the latents that could not be drawn.

    `sheet` is the place of the contact sheet, None if nothing was drawn; it has the first `shown`.
    """

    folder: str
    names: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    sheet: str | None = None
    shown: int = 0


def plan_previews(
    sources: Sequence[Path | str], listing: LatentListing, dest: Path | str
) -> PreviewPlan:
    """Names the pictures and prepares DEST.

    Args:
        sources: files, folders or URLs.
        listing: what they hold.
        dest: a folder outside of them.

    Raises:
        UsageError: DEST is a URL or a file, or outputs collide.
        StaeError: latents of several checkpoints, an unwritable DEST, or one with another picture
            in the place of the sheet.
    """
    first = listing.latents[:1]
    for stored in listing.latents:
        refuse_several(place_of(first[0]), first[0].info, place_of(stored), stored.info)
    destination = local_folder(dest)
    outputs = PictureOutputs(destination, "png", overwrite=False)
    keys = [*((stored.key, place_of(stored)) for stored in listing.latents), (SHEET, "--preview")]
    outputs.refuse_collisions(keys, EXACT)
    destination.prepare()
    if (rules := destination.rules) != EXACT:
        outputs.refuse_collisions(keys, rules)
    if obstacle := _obstacle(outputs, SHEET, None):
        raise StaeError(f"the contact sheet's place is taken: {obstacle[0]}", obstacle[1])
    return PreviewPlan(sources, listing.latents, outputs)


def write_previews(plan: PreviewPlan, *, advance: Callable[[int], None]) -> Previews:
    """Draws every latent, in colours that have the same meaning in all pictures, and the sheet.

    All latents are read twice: for the statistics that the colours come from, and to be drawn.
    Those that are damaged, or hold NaN or infinity, are listed and left out.

    Args:
        plan: from `plan_previews`.
        advance: called with the number of latents that were read.

    Raises:
        StaeError: there are too few valid latents, or DEST can no longer be written to.
    """
    statistics = survey(plan.sources, advance=advance).statistics
    assert statistics is not None  # `survey` raises without any
    destination = plan.outputs.destination
    found = Previews(destination.place())
    try:
        _write_all(plan, components_of(statistics), found, advance)
        _write_sheet(plan.outputs, found)
    finally:
        destination.finish()
    return found


def _write_all(
    plan: PreviewPlan, components: Components, found: Previews, advance: Callable[[int], None]
) -> None:
    outputs = plan.outputs
    draw = partial(_draw, outputs=outputs, components=components)
    writer: WriteBehind[None] = WriteBehind(
        threads=usable_cores(), max_bytes=WAITING_BYTES, on_written=lambda _: None
    )

    def write(stored: StoredLatent, pixels: Pixels) -> None:
        record = {MARK: stored.key, ROOT: root_id(stored.file.root)}
        with outputs.destination.writing(outputs.name(stored.key), writer.turn) as path:
            write_picture(path, pixels, format="png", record=json.dumps(record))

    with scanning(plan.latents, draw, workers=None) as results, writer:
        for stored, drawn in results:
            advance(1)
            if isinstance(drawn, Problem):
                found.problems.append(drawn)
                continue
            found.names.append(outputs.name(stored.key))
            pixels = _enlarged(drawn)
            writer.submit(pixels.nbytes, partial(write, stored, pixels))


def _draw(
    stored: StoredLatent, reserve: Reserve, *, outputs: PictureOutputs, components: Components
) -> tuple[StoredLatent, Pixels | Problem]:
    """Runs in a reading thread."""
    pixels = partial(_pixels, stored, reserve, outputs, components)
    return stored, problem_or(stored.label, pixels)


def _pixels(
    stored: StoredLatent, reserve: Reserve, outputs: PictureOutputs, components: Components
) -> Pixels:
    if obstacle := _obstacle(outputs, stored.key, root_id(stored.file.root)):
        raise InputError("; ".join(obstacle))
    reserve(stored.size)
    latent = stored.read()
    if not is_finite(latent):
        raise InputError("it holds NaN or infinity")
    return coloured(latent, components)


def _obstacle(outputs: PictureOutputs, key: str, root: str | None) -> tuple[str, str] | None:
    """Why the file in a picture's place, if there is one, must not be replaced, and what to do.

    `root` identifies the folder or URL that the latent is below; None allows any.
    """
    path = outputs.destination.path(outputs.name(key))
    record = read_picture_record(path)
    if record is None or recorded(record, MARK) is None:
        if path.exists() and path.stat().st_size:
            return f"`{path}` is not a preview", "move it, or choose another DEST"
    elif root is not None and recorded(record, ROOT) != root:
        what = f"`{path}` shows another latent of its name, in another folder"
        return what, "choose another DEST, or delete it"
    return None


def _enlarged(pixels: Pixels) -> Pixels:
    factor = max(1, round(SIDE / max(pixels.shape[:2])))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _write_sheet(outputs: PictureOutputs, found: Previews) -> None:
    paths = [outputs.destination.path(name) for name in found.names]
    sheet = fitting(paths, CONTACT_STYLE, longest_side=LONGEST_SIDE["png"])
    found.shown = len(sheet.paths)
    if found.shown:
        labels = [name.removesuffix(".png") for name in found.names[: found.shown]]
        with outputs.destination.writing(outputs.name(SHEET)) as path:
            write_picture(path, sheet.draw(labels), format="png", record=json.dumps({MARK: SHEET}))
        found.sheet = outputs.destination.place(outputs.name(SHEET))

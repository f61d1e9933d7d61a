"""Reading one image for the network, with the state of its source."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import BinaryIO

from stae_cli.errors import InputError
from stae_cli.flow.read_ahead import Reserve
from stae_cli.images.buffers import Buffers, Pixels
from stae_cli.images.read import open_image
from stae_cli.images.resize import Prep, Prepared, prepare
from stae_cli.network.architecture import UNIT
from stae_cli.storage.entry import Entry, SourceState, content_hash
from stae_cli.storage.notes import NOTHING, Notes

IN_MEMORY = 16 << 20  # bytes of a file


@dataclass(frozen=True)
class Picture:
    """One image, read and prepared, with the state and the hash of its source, and its notes."""

    prepared: Prepared
    source: SourceState
    content: str
    notes: Notes = NOTHING

    @property
    def patches(self) -> int:
        """How many patches of 8x8 pixels are encoded, whatever the network's own patch is."""
        return sum(map(patches_of, self.prepared.both))


def patches_of(pixels: Pixels) -> int:
    """How many patches of 8x8 pixels (H, W, 3) hold."""
    return pixels.size // (3 * UNIT**2)


def source_state(entry: Entry) -> SourceState:
    """The state of the source now.

    Raises:
        InputError: its name cannot be recorded.
        OSError: it is gone or cannot be reached.
    """
    try:
        entry.key.encode()
    except UnicodeEncodeError as error:
        raise InputError("its name is not valid UTF-8; rename it") from error
    try:
        return entry.state()
    except FileNotFoundError as error:  # paths of lists, say, may be relative to another folder
        raise InputError(f"cannot read `{entry.place}`: {error.strerror or error}") from error


def read_picture(
    entry: Entry, prep: Prep, *, patch: int, reserve: Reserve, buffers: Buffers
) -> Picture:
    """Reads and prepares one image.

    Args:
        entry: the image.
        prep: what to do to its size.
        patch: what sides must be multiples of.
        reserve: called with the bytes of pixels before they are decoded.
        buffers: allocates memory for pixels.

    Raises:
        InputError: it is not a sound image, or changed while it was read.
        OSError: it cannot be read.
    """
    before = source_state(entry)
    with entry.open() as opened:
        file = _in_memory(opened, before.size)
        content = content_hash(file)
        image = open_image(file, name=entry.key, buffers=buffers)
        reserve(image.width * image.height * 3 * (1 + prep.flip))
        prepared = prepare(image, prep, patch=patch)
    if entry.state() != before:
        raise InputError("it changed while it was read")
    return Picture(prepared, before, content)


def _in_memory(file: BinaryIO, size: int) -> BinaryIO:
    """The same bytes, read once if they are few: they are hashed and decoded."""
    return io.BytesIO(file.read()) if size <= IN_MEMORY else file

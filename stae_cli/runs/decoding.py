"""The decoding of latents: read, checked, through the network, and written as pictures."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from stae_cli.errors import InputError
from stae_cli.flow.read_ahead import Reserve
from stae_cli.foreign.arrays import ForeignLatent
from stae_cli.foreign.normalised import Undo
from stae_cli.images.buffers import Pixels
from stae_cli.images.read import MAX_PIXELS
from stae_cli.images.write import LONGEST_SIDE, read_picture_record, write_picture
from stae_cli.latents.format import Latent, StoredLatent, is_finite
from stae_cli.latents.writer import Written
from stae_cli.runs.picture_outputs import PictureOutputs
from stae_cli.runs.picture_record import foreign_record, is_picture_of, picture_record, recorded
from stae_cli.runs.pipeline import Pipeline
from stae_cli.runs.tally import Tally

if TYPE_CHECKING:
    from stae_cli.codec.pixel_codec import PixelCodec

Item = TypeVar("Item", StoredLatent, ForeignLatent)

_log = logging.getLogger(__name__)


class _Decoding(Pipeline[Item, Latent, Pixels | None]):
    """The decoding of some latents."""

    read_bytes = 64 << 20  # latents are small

    def __init__(
        self, outputs: PictureOutputs, codec: PixelCodec, tally: Tally, *, threads: int
    ) -> None:
        super().__init__(codec, tally, threads=threads)
        self.outputs = outputs

    def record(self, item: Item) -> dict[str, str | int]:
        """What the picture records of its latent."""
        raise NotImplementedError

    def sides(self, item: Item) -> tuple[int, int]:
        """Width and height of the picture in pixels."""
        raise NotImplementedError

    def raw(self, item: Item) -> Latent:
        """Reads a latent, as the network takes it.

        Raises:
            InputError: it cannot be used.
            OSError: it cannot be read.
        """
        raise NotImplementedError

    def label(self, item: Item) -> str:
        return item.label

    def read(self, item: Item, reserve: Reserve) -> Latent | None:
        if item.file.state() != item.state:
            raise InputError("it changed while the run was under way")
        if not self.outputs.overwrite and self._is_done(item):
            _log.debug("skipping %s: decoded already", item.label)
            return None
        reserve(item.size)
        latent = self.raw(item)
        if not is_finite(latent):
            raise InputError("it holds NaN or infinity")
        (width, height), form = self.sides(item), self.outputs.format
        if max(width, height) > LONGEST_SIDE[form]:
            raise InputError(
                f"{width}x{height} exceeds the {LONGEST_SIDE[form]} pixels of a "
                f"{form} side; use --format png"
            )
        return latent

    def _is_done(self, item: Item) -> bool:
        """Whether the picture is whole and was made from this latent.

        Raises:
            InputError: another program's file is in its place.
        """
        path = self.outputs.destination.path(self.outputs.name(item.key))
        found = read_picture_record(path)
        if found is None:
            if path.exists() and path.stat().st_size:
                raise InputError(
                    f"its output `{path}` exists and is not a complete picture of stae; "
                    "move it, or replace it with --overwrite"
                )
            return False
        record = self.record(item)
        if is_picture_of(found, record):
            return True
        if recorded(found, "latents_root") not in (None, record["latents_root"]):
            raise InputError(
                f"its output `{path}` was decoded from another latent of its name, in another "
                "folder; choose another DEST, or replace it with --overwrite"
            )
        _log.info("decoding %s again: its picture is of another version of it", item.label)
        return False

    def patches(self, loaded: Latent) -> int:
        return self.codec.architecture.units * loaded[0].size

    def begin(self, pack: Sequence[Latent]) -> Callable[[], Sequence[Pixels | None]]:
        return self.codec.begin_decoding(pack)

    def save(self, item: Item, loaded: Latent, result: Pixels | None) -> None:
        if result is None:
            self.fail(item, "the network gave NaN or infinity, in float32 too")
            return
        outputs, (width, height) = self.outputs, self.sides(item)
        picture, output = result[:height, :width], outputs.name(item.key)
        record = json.dumps(self.record(item), sort_keys=True)

        def write() -> Written:
            with outputs.destination.writing(output, self.writer.turn) as path:
                write_picture(path, picture, format=outputs.format, record=record)
                return Written(1, path.stat().st_size)

        self.tally.pixels += width * height
        self.writer.submit(result.nbytes, write)


class StoredDecoding(_Decoding[StoredLatent]):
    """The decoding of latents of stae, which record the sizes of their pictures."""

    def record(self, item: StoredLatent) -> dict[str, str | int]:
        return picture_record(item)

    def sides(self, item: StoredLatent) -> tuple[int, int]:
        return item.info.width, item.info.height

    def raw(self, item: StoredLatent) -> Latent:
        info, latent, sizes = item.info, item.read(), self.codec.architecture
        numbers = (info.downsample, info.latent_channels) == (sizes.downsample, sizes.channels)
        if not (numbers and sizes.is_named(info.architecture)):
            raise InputError(
                f"damaged: it says {info.architecture}, {info.latent_channels} channels at "
                f"1/{info.downsample}, but its weights are a {sizes.describe()}"
            )
        return latent


class ForeignDecoding(_Decoding[ForeignLatent]):
    """The decoding of latents of other programs, whose normalisation is undone.

    Args:
        undo: what makes them raw latents again.
        weights_sha256: of the checkpoint that decodes them.
    """

    def __init__(
        self,
        outputs: PictureOutputs,
        codec: PixelCodec,
        tally: Tally,
        *,
        threads: int,
        undo: Undo,
        weights_sha256: str,
    ) -> None:
        super().__init__(outputs, codec, tally, threads=threads)
        self.undo, self.weights_sha256 = undo, weights_sha256

    def record(self, item: ForeignLatent) -> dict[str, str | int]:
        return foreign_record(item, self.weights_sha256, self.undo)

    def sides(self, item: ForeignLatent) -> tuple[int, int]:
        (_, rows, columns), size = item.shape, self.codec.architecture.downsample
        return columns * size, rows * size

    def raw(self, item: ForeignLatent) -> Latent:
        width, height = self.sides(item)
        if width * height > MAX_PIXELS:
            raise InputError(f"{width}x{height} pixels are more than {MAX_PIXELS // 10**6} million")
        return self.undo.apply(item.read())

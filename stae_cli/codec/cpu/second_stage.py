"""The second stage in the inference form: matrix products over cells of the first one's latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from stae_cli.codec.cpu.affine import Placement
from stae_cli.codec.cpu.encoder import fold_encoder
from stae_cli.codec.cpu.folding import fold_cell_layer, fold_cell_painter
from stae_cli.codec.cpu.trunk import fold_trunk
from stae_cli.network.stupid_ae import Encoder, ShuffleDecoder, StupidAE


class SecondForm:
    """The second stage of a model; its rows are cells of `patch` x `patch` latents.

    Args:
        model: one of two stages.
        place: where its weights go.
        rows: cells that go through the layers at once.
    """

    def __init__(self, model: StupidAE, place: Placement, *, rows: int) -> None:
        sizes = model.architecture.stages[1]
        encoder = cast(Encoder, model.encoder[1])
        decoder = cast(ShuffleDecoder, model.decoder[1])
        self.patch, self._values = sizes.patch, sizes.inputs * sizes.patch**2
        self._encoder = fold_encoder(encoder, fold_cell_layer(encoder, place), place, rows=rows)
        self._trunk = fold_trunk(decoder, sizes, place, rows=rows)
        self._painter = fold_cell_painter(decoder, sizes.patch, place, self._trunk.lacking)

    def cut(self, patches: Tensor, size: int) -> Tensor:
        """Patches (n, (cell * size)^2 * 3) to those of the first stage, (n * cell^2, size^2 * 3).

        The parts of a patch follow each other row by row; so do the pixels of a part.
        """
        grid = patches.unflatten(1, (self.patch, size, self.patch, size * 3))
        return grid.transpose(2, 3).flatten(3).flatten(0, 2)

    def encode(self, rows: Tensor) -> Tensor:
        """First latents (n * cell^2, C) in the order of `cut` -> (n, channels)."""
        cells = rows.view(-1, self._values)
        return torch.cat([self._encoder(part) for part in cells.split(self._encoder.rows)])

    def decode(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Latents (h, w, channels) of any sizes -> first latents (cell * h, cell * w, C)."""
        features = self._trunk(latents)
        rows = torch.cat([self._painter(part) for part in features.split(self._encoder.rows)])
        sizes = [(latent.shape[0], latent.shape[1]) for latent in latents]
        parts = rows.split([height * width for height, width in sizes])
        return [
            part.view(height, width, self.patch, self.patch, -1)
            .transpose(1, 2)
            .reshape(height * self.patch, width * self.patch, -1)
            for part, (height, width) in zip(parts, sizes, strict=True)
        ]

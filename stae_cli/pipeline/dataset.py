"""Stored latents as a torch dataset: cropped on the latent grid, normalised."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from stae_cli.errors import StaeError, UsageError
from stae_cli.files.mapped import LatentMaps, index_latents


class LatentSample(TypedDict):
    """One picture's latents, as a `DataLoader` collates them.

    `latents` is (C, h, w) float32; `width` and `height` are the whole picture's, in pixels; the
    crop begins at the latent position (`top`, `left`), 0 and 0 where nothing is cropped.
    """

    latents: Tensor
    key: str
    width: int
    height: int
    top: int
    left: int


class LatentDataset(Dataset[LatentSample]):
    """The latents below some folders, one to a file or in shards, to train on.

    Headers are read once, on construction. Data is mapped into memory, so that only what is used
    is read, in `DataLoader` workers too, forked or spawned.

    Crops are drawn from torch's global generator, of which a `DataLoader` seeds every worker anew
    in every epoch; `torch.manual_seed` repeats a run.

    Args:
        sources: latent files, or folders of them. No key may come twice: join folders that share
            keys with `torch.utils.data.ConcatDataset`.
        crop: rows and columns of a random crop in latent positions (8x8 pixels each), or one
            number for both. Pictures with fewer are left out, and counted in `left_out`; without
            a crop, all are whole.
        shift: subtracted from raw latents, ...
        scale: ... which are then multiplied with this, like `Codec.normalize` does it.

    Raises:
        UsageError: a source does not exist, or a crop of nothing.
        StaeError: there are no latents, or all are smaller than the crop; a file is damaged or no
            latent of ours; they are of several checkpoints; a key comes twice.
    """

    def __init__(
        self,
        *sources: Path | str,
        crop: int | tuple[int, int] | None = None,
        shift: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        self.crop = (crop, crop) if isinstance(crop, int) else crop
        if self.crop and min(self.crop) < 1:
            raise UsageError(f"no crop of {self.crop} latent positions", "give at least 1")
        self.shift, self.scale = shift, scale
        self._index = index_latents([Path(source) for source in sources], smallest=self.crop)
        self._maps = LatentMaps(self._index.files)
        if not len(self):
            raise StaeError(
                f"all {self.left_out} latents are smaller than the crop of {self.crop}",
                "give a smaller crop: a latent position stands for 8x8 pixels",
            )

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> LatentSample:
        """One picture's latents, in memory of their own.

        Raises:
            IndexError: there is no such picture.
            StaeError: its file has changed, or cannot be read any more.
        """
        number = range(len(self))[index]
        where = self._index.whereabouts(number)
        rows, columns = self.crop or (where.rows, where.columns)
        top, left = _drawn(where.rows - rows), _drawn(where.columns - columns)
        view = self._maps.latent(where)[:, top : top + rows, left : left + columns]
        latents = torch.from_numpy(np.array(view, np.float32, order="C"))  # (C, h, w)
        if (self.shift, self.scale) != (0.0, 1.0):
            latents.sub_(self.shift).mul_(self.scale)
        return {
            "latents": latents, "key": self._index.key(number),
            "width": where.width, "height": where.height, "top": top, "left": left,
        }  # fmt: skip

    @property
    def weights(self) -> str:
        """The name of the checkpoint that all the latents were made with."""
        return self._index.weights

    @property
    def weights_sha256(self) -> str:
        """The fingerprint of that checkpoint."""
        return self._index.weights_sha256

    @property
    def left_out(self) -> int:
        """How many latents are smaller than the crop."""
        return self._index.too_small


def _drawn(largest: int) -> int:
    """A random number from 0 to `largest`, which if 0 costs no randomness."""
    return int(torch.randint(largest + 1, ())) if largest else 0

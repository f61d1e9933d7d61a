"""Stored latents as a torch dataset: cropped on the latent grid, normalised."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from stae_cli.errors import StaeError, UsageError
from stae_cli.latents.index import index_latents
from stae_cli.latents.mapped import LatentMaps
from stae_cli.scaling import per_channel
from stae_cli.storage.fsspec_store import is_url

PerChannel = float | Sequence[float] | npt.NDArray[np.floating] | Tensor


class LatentSample(TypedDict):
    """One picture's latents; a `DataLoader` can collate them if all have one size.

    `latents` is (C, h, w) float32; `width` and `height` are the whole picture's, in pixels; the
    crop begins at the latent position (`top`, `left`), which is 0, 0 without a crop. `caption` is
    empty and `label` -1 if none was found beside the picture when it was encoded.
    """

    latents: Tensor
    key: str
    width: int
    height: int
    top: int
    left: int
    caption: str
    label: int


class LatentBatch(TypedDict):
    """Latents of several pictures of any sizes, from `collate_latents`; numbers are int64 (B,)."""

    latents: list[Tensor]
    key: list[str]
    width: Tensor
    height: Tensor
    top: Tensor
    left: Tensor
    caption: list[str]
    label: Tensor


def collate_latents(samples: Sequence[LatentSample]) -> LatentBatch:
    """The `collate_fn` of a `DataLoader` over whole pictures, which differ in size.

    `latents` become a list of (C, h, w), in order, which share their memory; the rest is as torch
    collates it.
    """
    numbers = [[s["width"], s["height"], s["top"], s["left"], s["label"]] for s in samples]
    width, height, top, left, label = (
        torch.tensor(numbers, dtype=torch.int64).reshape(-1, 5).T.contiguous()
    )
    return {
        "latents": _in_few_storages([sample["latents"] for sample in samples]),
        "key": [sample["key"] for sample in samples],
        "width": width,
        "height": height,
        "top": top,
        "left": left,
        "caption": [sample["caption"] for sample in samples],
        "label": label,
    }


def _in_few_storages(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors of any shapes, as views of one storage for each dtype.

    A worker hands each storage over as an open file, and a process may have about 1,000 of those.
    """
    copies = {}
    for dtype in {tensor.dtype for tensor in tensors}:
        alike = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        copies[dtype] = iter(flat.split([tensor.numel() for tensor in alike]))
    return [next(copies[tensor.dtype]).view(tensor.shape) for tensor in tensors]


class LatentDataset(Dataset[LatentSample]):
    """The latents in some folders, in files or in shards, for training.

    Headers are read once, on construction. Data are memory-mapped, so only what is used is read,
    also in `DataLoader` workers, forked or spawned.

    Random crops use torch's global generator, which a `DataLoader` seeds in each worker and epoch;
    `torch.manual_seed` makes a run repeatable.

    Args:
        sources: latent files, or folders of them. Each key must be unique: join folders that share
            keys with `torch.utils.data.ConcatDataset`.
        crop: rows and columns of a random crop in latent positions (8x8 pixels each), or one
            number for both. Smaller pictures are left out and counted in `left_out`. Without a
            crop, latents are whole: pass `collate_latents` to the `DataLoader`.
        shift: subtracted from the raw latents, ...
        scale: ... which are then multiplied by this, as in `Codec.normalize`. Both are one number,
            or a sequence, array or tensor of one for each channel.
        flip: whether half of the samples, drawn at random, are of the mirrored picture, as
            `stae encode --flip` stored it: a latent cannot be mirrored.
        check: whether to check the data of each latent, against its checksum and for NaN and
            infinity, when it is first read. That reads all of it, even for a crop.

    Raises:
        UsageError: a source does not exist or is not a path, or the crop, shift or scale is not
            valid.
        StaeError: there are no latents, or all are smaller than the crop; a file is damaged or not
            a latent of ours; there are several checkpoints, or a key twice; or a latent has no
            flip.
    """

    def __init__(
        self,
        *sources: os.PathLike[str] | str,
        crop: int | tuple[int, int] | None = None,
        shift: PerChannel = 0.0,
        scale: PerChannel = 1.0,
        flip: bool = False,
        check: bool = True,
    ) -> None:
        self.crop = None if crop is None else _sides(crop)
        self.shift, self.scale, self.flip = shift, scale, flip
        self._index = index_latents([_path(source) for source in sources], smallest=self.crop)
        if flip and self._index.without_flip:
            raise StaeError(
                f"`{self._index.without_flip}` has no latent of its mirrored picture",
                "encode the pictures with `--flip`",
            )
        self._maps = LatentMaps(self._index, check=check)
        if not len(self):
            raise StaeError(
                f"all {self.left_out} latents are smaller than the crop of {self.crop}",
                "give a smaller crop: a latent position stands for 8x8 pixels",
            )
        channels = self._index.location(0).channels
        self._shift = _channel_numbers(shift, "shift", channels)
        self._scale = _channel_numbers(scale, "scale", channels)
        numbers = (self._shift, self._scale)
        self._is_raw = not any(isinstance(n, Tensor) for n in numbers) and numbers == (0.0, 1.0)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> LatentSample:
        """One picture's latents, as a copy.

        Raises:
            IndexError: there is no such picture.
            StaeError: its data are damaged, or its file has changed or can no longer be read.
        """
        number = range(len(self))[index]
        where = self._index.location(number)
        rows, columns = self.crop or (where.rows, where.columns)
        top, left = _drawn(where.rows - rows), _drawn(where.columns - columns)
        flipped = self.flip and bool(_drawn(1))
        whole = self._maps.latent(number, where, flipped=flipped)
        view = whole[:, top : top + rows, left : left + columns]
        latents = torch.from_numpy(np.array(view, np.float32, order="C"))  # (C, h, w)
        if not self._is_raw:
            latents.sub_(self._shift).mul_(self._scale)
        return {
            "latents": latents,
            "key": self._index.key(number),
            "width": where.width,
            "height": where.height,
            "top": top,
            "left": left,
            "caption": self._index.caption(number),
            "label": where.label,
        }

    @property
    def weights(self) -> str:
        """The name of the checkpoint that made all the latents."""
        return self._index.weights

    @property
    def weights_sha256(self) -> str:
        """The fingerprint of that checkpoint."""
        return self._index.weights_sha256

    @property
    def left_out(self) -> int:
        """How many latents are smaller than the crop."""
        return self._index.too_small


def _channel_numbers(values: PerChannel, name: str, channels: int) -> Tensor | float:
    """One number as it is, or (C, 1, 1) float32."""
    try:
        numbers = per_channel(values, name, channels)
    except ValueError as error:
        raise UsageError(str(error), f"give one number, or {channels}") from error
    if len(numbers) == 1:
        return numbers[0]
    return torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1)


def _sides(crop: int | tuple[int, int]) -> tuple[int, int]:
    try:
        rows, columns = map(operator.index, crop if isinstance(crop, Sequence) else (crop, crop))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"`crop={crop!r}` is not a crop",
            "give whole numbers: rows and columns, or one for both",
        ) from error
    if min(rows, columns) < 1:
        raise UsageError(f"a crop of {crop} latent positions is not allowed", "give at least 1")
    return rows, columns


def _path(source: os.PathLike[str] | str) -> Path:
    if not isinstance(source, str | os.PathLike):
        raise UsageError(
            f"`{source!r}` is not a path", 'give each as an argument: `LatentDataset("a", "b")`'
        )
    if isinstance(source, str) and is_url(source):
        raise UsageError(
            f"`{source}` is a URL, and latents are mapped from files", "copy them to a folder first"
        )
    return Path(source)


def _drawn(largest: int) -> int:
    """A random number from 0 to `largest`; 0 takes nothing from the generator."""
    return int(torch.randint(largest + 1, ())) if largest else 0

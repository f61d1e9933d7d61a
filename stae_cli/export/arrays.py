"""Arrays as NumPy's files: a tree of them by class, and those of fast-DiT and MAR."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stae_cli.errors import StaeError
from stae_cli.export.format import (
    About,
    Format,
    Normalize,
    refuse_sizes,
    refuse_unlabelled,
    refuse_without_flips,
)
from stae_cli.export.samples import Samples
from stae_cli.latents.format import Latent

LOG_VARIANCE = -30.0  # of MAR's moments: a sample is the mean to 3e-7 of its deviation


class NpyTree(Format):
    """`CLASS/NAME.npy`, float32 (C, h, w), as `DatasetFolder(DEST, np.load, [".npy"])` reads it."""

    normalize = "channel"

    def check(self, samples: Samples, normalize: Normalize) -> None:
        _check_folders(samples, "a tree of .npy files")

    def write(self, samples: Samples, folder: Path, per_file: int, about: About) -> Iterator[int]:
        for sample in samples:
            path = _made(folder, f"{sample.key}.npy")
            path.write_bytes(npy_bytes(sample.latent.astype(np.float32)))
            yield 1


class FastDiT(Format):
    """`imagenet256_features/00000000.npy` (1, C, h, w) and `imagenet256_labels/00000000.npy` (1,).

    The names are fast-DiT's own, whatever the pictures; it pairs the files by their order.
    """

    normalize = "channel"

    def check(self, samples: Samples, normalize: Normalize) -> None:
        refuse_sizes(samples, "fast-DiT")
        refuse_unlabelled(samples, "fast-DiT")

    def write(self, samples: Samples, folder: Path, per_file: int, about: About) -> Iterator[int]:
        features, labels = folder / "imagenet256_features", folder / "imagenet256_labels"
        features.mkdir()
        labels.mkdir()
        for number, sample in enumerate(samples):
            name = f"{number:08}.npy"
            latent = sample.latent.astype(np.float32)[None]
            (features / name).write_bytes(npy_bytes(latent))
            (labels / name).write_bytes(npy_bytes(np.array([sample.label], np.int64)))
            yield 1


class Mar(Format):
    """`CLASS/NAME.npz` with `moments` and `moments_flip`, float32 (2C, h, w), as MAR caches them.

    The upper half is a log-variance, so small that a sample is the latent to rounding.
    """

    normalize = "channel"

    def check(self, samples: Samples, normalize: Normalize) -> None:
        refuse_sizes(samples, "MAR")
        refuse_without_flips(samples, "MAR")
        _check_folders(samples, "MAR")

    def write(self, samples: Samples, folder: Path, per_file: int, about: About) -> Iterator[int]:
        for sample in samples:
            assert sample.flip is not None
            arrays = {"moments": _moments(sample.latent), "moments_flip": _moments(sample.flip)}
            _made(folder, f"{sample.key}.npz").write_bytes(_npz_bytes(arrays))
            yield 1


def npy_bytes(array: npt.NDArray[np.generic]) -> bytes:
    """An array as a `.npy` file, little-endian and in C order."""
    array = np.ascontiguousarray(array)
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return _npy_header(array.dtype.str, array.shape) + array.tobytes()


@lru_cache(maxsize=1024)
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def _npz_bytes(arrays: Mapping[str, npt.NDArray[np.generic]]) -> bytes:
    """Like `np.savez`, the same bytes each time: that one records the time."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), npy_bytes(array))
    return file.getvalue()


def _moments(latent: Latent) -> npt.NDArray[np.float32]:
    mean = latent.astype(np.float32)
    return np.concatenate([mean, np.full_like(mean, LOG_VARIANCE)])


def _made(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.parent.exists():
        path.parent.mkdir(parents=True)
    return path


def _check_folders(samples: Samples, what: str) -> None:
    """Checks that the top-level folders are classes, and agree with the labels, if there are any.

    Raises:
        StaeError: a latent is in no folder, or readers would number the classes otherwise.
    """
    numbers: dict[str, int] = {}
    for key, label in zip(samples.keys(), samples.labels.tolist(), strict=True):
        folder, slash, _ = key.partition("/")
        if not slash:
            raise StaeError(
                f"{what} has a folder for each class, and `{key}` is in none",
                "encode a folder of class folders, or export to webdataset or parquet",
            )
        if numbers.setdefault(folder, label) != label:
            raise StaeError(
                f"{what} has a folder for each class, and the latents in `{folder}` have labels "
                f"{numbers[folder]} and {label}",
                "export to lightningdit, fast-dit, webdataset or parquet, which hold the labels",
            )
    for number, folder in enumerate(sorted(numbers)):
        if numbers[folder] not in (number, -1):
            raise StaeError(
                f"{what} numbers the folders by their names, so `{folder}` would be class "
                f"{number}, and its latents have the label {numbers[folder]}",
                "export to lightningdit, fast-dit, webdataset or parquet, which hold the labels",
            )

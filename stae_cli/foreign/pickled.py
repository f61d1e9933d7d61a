"""Tensors in files of `torch.save`: loaded without running their code, and mapped if possible."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stae_cli.checkpoints.tensor_files import DAMAGED_PICKLE, is_plain
from stae_cli.errors import InputError
from stae_cli.storage.entry import SourceState

LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9"  # of torch before 1.6
FILES_HELD = 2
MOST_TENSORS = 1_000_000


def load_safely(path: Path) -> Any:
    """What a file of `torch.save` holds; data of the present format are mapped, not read.

    Raises:
        InputError: damaged, or it holds more than tensors and plain Python values.
        OSError: it cannot be read.
    """
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            _refuse_compressed(path)
        with warnings.catch_warnings():  # about pickle protocols, which do not concern users
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise InputError(
            "it holds more than tensors, or is damaged; refused without running it"
        ) from error
    except DAMAGED_PICKLE as error:
        raise InputError("damaged: torch cannot load it") from error


def _refuse_compressed(path: Path) -> None:
    """Refuses archives that torch does not write: compressed members may unpack to any size."""
    with zipfile.ZipFile(path) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise InputError("a compressed archive, which `torch.save` does not write")


def tensors_of(path: Path, state: SourceState) -> dict[str, Tensor]:
    """The tensors in a file by name: of a dict its keys, of a list its numbers.

    A single tensor has an empty name. The file's state only tells one version from the next.

    Raises:
        InputError: damaged, or not only tensors.
        OSError: it cannot be read.
    """
    return _tensors_of(str(path), state)


@lru_cache(FILES_HELD)  # a file of many samples is loaded once, not for each
def _tensors_of(place: str, _: SourceState) -> dict[str, Tensor]:
    tensors = dict(_named(load_safely(Path(place))))
    for name, tensor in tensors.items():
        where = f" in `{name}`" if name else ""
        if not is_plain(tensor):
            raise InputError(f"a sparse, quantised or otherwise unusual tensor{where}")
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise InputError(f"a tensor{where} whose data are fewer than its shape says")
    return tensors


def _named(loaded: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(loaded, Tensor):
        yield "", loaded.detach()
        return
    if isinstance(loaded, Mapping):
        pairs = [(str(name), value) for name, value in loaded.items()]
    elif isinstance(loaded, list | tuple):
        pairs = [(f"{number:05d}", value) for number, value in enumerate(loaded)]
    else:
        raise InputError(f"it holds a {type(loaded).__name__}, not a tensor")
    if len(pairs) > MOST_TENSORS:
        raise InputError(f"it holds more than {MOST_TENSORS} tensors")
    for name, value in pairs:
        if isinstance(value, Tensor):
            yield name, value.detach()
        elif not isinstance(value, int | float | str | bool | None):
            raise InputError(f"`{name}` in it is a {type(value).__name__}, not a tensor")


def sample_of(tensor: Tensor, index: int | None) -> Any:
    """A tensor, or one of its first axis, as a numpy array of its own; bfloat16 as float32."""
    part = tensor if index is None else tensor[index]
    wide = part.float() if part.dtype == torch.bfloat16 else part
    return wide.clone().resolve_conj().numpy()

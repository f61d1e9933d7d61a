"""Tensor files: reads safetensors and torch pickles safely, writes safetensors atomically.

Also what depends on the tensors alone: their fingerprint, and the linear layout of the encoder.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stae_cli.checkpoints.names import PICKLE_SUFFIXES, SAFETENSORS_SUFFIX
from stae_cli.errors import CheckpointError
from stae_cli.storage.temp_files import remove_abandoned, temporary_name

DAMAGED_PICKLE = (  # raised by torch.load on damaged files, as found by mutating files
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)

DTYPE_NAMES = {  # as safetensors spells them
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}

LAYOUT_KEY, LINEAR = "encoder_layout", "linear"  # the mark in the metadata
ENCODER = "encoder."


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a `.safetensors`, `.pt` or `.pth` file, and the metadata of the first kind.

    Raises:
        CheckpointError: absent, unreadable or damaged, or not just tensors.
    """
    suffix = path.suffix.lower()
    if suffix not in (*PICKLE_SUFFIXES, SAFETENSORS_SUFFIX):
        raise CheckpointError(
            f"`{path}` is not a checkpoint file", "give a .safetensors, .pt or .pth file"
        )
    if path.exists() and not path.is_file():  # opening a pipe would block forever
        raise CheckpointError(f"`{path}` is a folder or a special file", "give a file")
    return _read_safetensors(path) if suffix == SAFETENSORS_SUFFIX else (_read_pickle(path), {})


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (OSError, SafetensorError, struct.error) as error:
        raise _unreadable(path, error) from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled state dict, loaded with `weights_only=True`."""
    try:
        with warnings.catch_warnings():  # about pickle protocols, which do not concern users
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"`{path}` holds more than tensors, or is damaged; refused without running it",
            "ask its author for a .safetensors file, or save its state dict alone",
        ) from error
    except (OSError, *DAMAGED_PICKLE) as error:
        raise _unreadable(path, error) from error
    if not isinstance(loaded, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in loaded.items()
    ):
        raise CheckpointError(
            f"`{path}` is not a state dict of tensors",
            "save `model.state_dict()` and nothing around it",
        )
    odd = [name for name, tensor in loaded.items() if not is_plain(tensor)]
    if odd:
        raise CheckpointError(
            f"`{path}` has a tensor that is sparse, nested, quantised or without data: `{odd[0]}`",
            "save plain tensors",
        )
    return {name: tensor.detach() for name, tensor in loaded.items()}


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is plain strided memory on the CPU, as most of torch expects."""
    is_dense = tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_quantized)
    return is_dense and tensor.device.type == "cpu" and not tensor.is_neg()


def _unreadable(path: Path, error: BaseException) -> CheckpointError:
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"no checkpoint file `{path}`", "check the path given to --weights")
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    if isinstance(error, LookupError):  # its text is only the key
        reason = "it is not a checkpoint, or damaged"
    return CheckpointError(
        f"cannot read checkpoint `{path}`: {reason}", "the file may be damaged: fetch it again"
    )


def check_numbers(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Checks that a file's tensors hold floats of a known dtype, all of them finite.

    Raises:
        CheckpointError: they do not.
    """
    odd = [name for name, tensor in tensors.items() if tensor.dtype not in DTYPE_NAMES]
    if odd:
        raise CheckpointError(
            f"`{path}` has a tensor that is not a float: `{odd[0]}`",
            f"these are read: {', '.join(DTYPE_NAMES.values())}",
        )
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"`{path}` holds NaN or infinite weights in `{broken[0]}`", "use an earlier checkpoint"
        )


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file atomically; removes temporary files of killed processes.

    Raises:
        CheckpointError: it cannot be written.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        content = save(whole, metadata=metadata)
    except SafetensorError as error:
        raise CheckpointError(f"cannot write `{path}`: {error}", "give another path") from error
    write_file(path, content)


def write_file(path: Path, content: bytes) -> None:
    """Writes a file atomically; removes temporary files of killed processes.

    Raises:
        CheckpointError: it cannot be written.
    """
    temporary = path.with_name(temporary_name())
    try:
        remove_abandoned(path.parent, [found.name for found in path.parent.iterdir()])
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # after a system crash the name could exist without data
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        reason = error.strerror or error  # leaves out the temporary file's name
        raise CheckpointError(f"cannot write `{path}`: {reason}", "give another path") from error


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    r"""sha256 over, per tensor in name order, `name\0dtype\\0shape\n` and its bytes as stored.

    It depends on the tensors alone: a `.pt` and a `.safetensors` with the same weights agree, and
    so does a file with a linear encoder, since the shapes are those of the network.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        shape = ",".join(str(size) for size in tensor.shape)
        digest.update(f"{name}\0{DTYPE_NAMES[tensor.dtype]}\0{shape}\n".encode())
        flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()


def to_linear(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every convolution of the encoder, (out, in, k, k), as a matrix (out, in * k * k)."""
    return {
        name: tensor.flatten(1) if name.startswith(ENCODER) and tensor.ndim == 4 else tensor
        for name, tensor in tensors.items()
    }


def from_linear(
    tensors: dict[str, Tensor], metadata: dict[str, str], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The inverse of `to_linear`, for a file whose metadata marks that layout; removes the mark.

    Args:
        tensors: of the file.
        metadata: likewise; without a mark the tensors are returned as they are.
        expected: tensors with the network's shapes.

    Raises:
        CheckpointError: the metadata names a layout that this version does not know.
    """
    layout = metadata.pop(LAYOUT_KEY, None)
    if layout is None:
        return tensors
    if layout != LINEAR:
        raise CheckpointError(
            f"unknown {LAYOUT_KEY} `{layout[:80]}` in a checkpoint", "it may need a newer stae"
        )
    matrices = to_linear(expected)
    return {
        name: tensor.view(expected[name].shape)
        if name in matrices and tensor.shape == matrices[name].shape
        else tensor
        for name, tensor in tensors.items()
    }

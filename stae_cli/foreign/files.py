"""Files of other programs: which arrays they hold, by their headers."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from stae_cli.errors import InputError
from stae_cli.foreign import npy
from stae_cli.foreign.arrays import ForeignArray, Kind
from stae_cli.latents.format import FORMAT
from stae_cli.latents.safetensors_header import FOREIGN_DTYPES, read_tensors
from stae_cli.latents.shard_format import FORMAT as SHARD
from stae_cli.latents.shard_format import HEADER_LIMIT
from stae_cli.signatures import LONGEST, SAFETENSORS, kind_of
from stae_cli.storage.entry import FileEntry, SourceState
from stae_cli.storage.names import suffix_of

SUFFIXES = (".npy", ".npz", ".pt", ".pth")  # besides .safetensors
ZIP = (b"PK\3\4", b"PK\5\6")
UNNAMED = np.dtype("V2")  # how NumPy stores bfloat16 of JAX and ml_dtypes, which it does not know
LOCAL_HEADER = 30  # bytes of a ZIP member's own header, before its name
READ = ".npy, .npz, .pt, .pth and .safetensors are read"


def arrays_in(entry: FileEntry) -> list[ForeignArray]:
    """All arrays of a file of another program, whatever they are.

    Raises:
        InputError: the file is of another kind, damaged, truncated, or a latent of stae.
        OSError: it cannot be read.
    """
    state = entry.state()
    with entry.open() as file:
        head = file.read(LONGEST)
        file.seek(0)
        if head.startswith(npy.MAGIC):
            return [_npy(entry, state, file)]
        if head.startswith(ZIP):
            return _zipped(entry, state, file)
        kind = kind_of(head)
        if kind is None and head and suffix_of(entry.key) in SUFFIXES:
            raise InputError(f"not latents, or damaged; {READ}")
        if kind in (None, SAFETENSORS):
            return list(_safetensors(entry, state, file))
    from stae_cli.foreign import pickled

    if not head.startswith(pickled.LEGACY):
        raise InputError(f"{kind}, not latents; {READ}")
    return _pickled(entry, state)


def _npy(entry: FileEntry, state: SourceState, file: BinaryIO) -> ForeignArray:
    header = npy.read_header(file)
    array = _described(entry, state, "npy", "", header, header.length)
    size = math.prod(header.shape) * header.dtype.itemsize
    if array.dtype != "object" and header.length + size > state.size:
        raise InputError("truncated")
    return array


def _described(
    entry: FileEntry,
    state: SourceState,
    kind: Kind,
    name: str,
    header: npy.Header,
    begin: int | None,
) -> ForeignArray:
    if header.is_fortran and len(header.shape) > 1:
        begin = None
    is_big = header.dtype.newbyteorder("<") != header.dtype
    dtype = "bfloat16" if header.dtype == UNNAMED else header.dtype.name
    return ForeignArray(entry, state, kind, name, header.shape, dtype, begin, is_big)


def _zipped(entry: FileEntry, state: SourceState, file: BinaryIO) -> list[ForeignArray]:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if not any(name.endswith("/data.pkl") for name in names):
                found = [
                    _member(entry, state, file, archive, info)
                    for info in archive.infolist()
                    if info.filename.endswith(".npy")
                ]
                if names and not found:
                    raise InputError(f"a ZIP archive without arrays; {READ}")
                return found
    except npy.DAMAGED_ZIP as error:
        raise InputError("truncated or damaged: it begins like a .npz or .pt") from error
    return _pickled(entry, state)


def _member(
    entry: FileEntry,
    state: SourceState,
    file: BinaryIO,
    archive: zipfile.ZipFile,
    info: zipfile.ZipInfo,
) -> ForeignArray:
    name = info.filename.removesuffix(".npy")
    with archive.open(info) as member:
        header = npy.read_header(member)
    begin = None
    if info.compress_type == zipfile.ZIP_STORED:
        file.seek(info.header_offset)
        own = file.read(LOCAL_HEADER)
        names = int.from_bytes(own[26:28], "little") + int.from_bytes(own[28:30], "little")
        begin = info.header_offset + LOCAL_HEADER + names + header.length
        size = math.prod(header.shape) * header.dtype.itemsize
        if header.dtype != object and header.length + size != info.file_size:
            raise InputError(f"damaged: `{name}` has another size than its header says")
    elif header.dtype != object:
        npy.refuse_bomb(header, info)
    return _described(entry, state, "npz", name, header, begin)


def _pickled(entry: FileEntry, state: SourceState) -> list[ForeignArray]:
    from stae_cli.foreign import pickled

    return [
        ForeignArray(
            entry, state, "pt", name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        )
        for name, tensor in pickled.tensors_of(entry.path, state).items()
    ]


def _safetensors(entry: FileEntry, state: SourceState, file: BinaryIO) -> Iterator[ForeignArray]:
    tensors, metadata, data = read_tensors(file, state.size, limit=HEADER_LIMIT)
    if metadata.get("format") in (FORMAT, SHARD):
        raise InputError("a latent of stae, in a version of its format that is not read")
    for name, description in tensors.items():
        yield _tensor(entry, state, name, description, data)


def _tensor(
    entry: FileEntry, state: SourceState, name: str, description: Any, data: int
) -> ForeignArray:
    try:
        shape, code = tuple(description["shape"]), str(description["dtype"])
        begin, end = description["data_offsets"]
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(f"damaged: `{name[:80]}` is not a tensor") from error
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise InputError(f"damaged: `{name[:80]}` has impossible sizes")
    dtype = FOREIGN_DTYPES.get(code, code[:20])
    array = ForeignArray(entry, state, "safetensors", name, shape, dtype, data + begin)
    if data + end > state.size:
        raise InputError("truncated")
    if array.problem() is None and math.prod(shape) * array.itemsize != end - begin:
        raise InputError(f"damaged: `{name[:80]}` has the wrong size")
    return array


def is_statistics(arrays: list[ForeignArray]) -> bool:
    """Whether a file holds statistics of latents, as LightningDiT's `latents_stats.pt` does."""
    shapes = {array.shape for array in arrays}
    is_flat = all(math.prod(shape) == max(shape, default=1) for shape in shapes)
    return {array.name for array in arrays} == {"mean", "std"} and len(shapes) == 1 and is_flat

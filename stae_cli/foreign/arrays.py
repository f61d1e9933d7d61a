"""Arrays of latents in files of other programs, each latent of them, and how it is read."""

from __future__ import annotations

import math
import threading
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from stae_cli.errors import InputError
from stae_cli.foreign import npy
from stae_cli.latents.format import Latent
from stae_cli.storage.entry import FileEntry, SourceState

Kind = Literal["npy", "npz", "safetensors", "pt"]
FLOATS = ("float16", "bfloat16", "float32", "float64")
ARRAYS_HELD = 2  # of those that have to be read whole

_unpacking = threading.Lock()


@dataclass(frozen=True, slots=True)
class ForeignArray:
    """An array in a file of another program, as its header describes it.

    `name` is empty where a file holds just one array without a name; `dtype` is a name such as
    `float16`; `is_big` says that its bytes are big-endian. Its data begin at byte `begin` of the
    file, in C order, or None if it has to be read whole.
    """

    file: FileEntry
    state: SourceState
    kind: Kind
    name: str
    shape: tuple[int, ...]
    dtype: str
    begin: int | None = None
    is_big: bool = False

    @property
    def label(self) -> str:
        """Its name in messages: its file, and its own name there."""
        return f"{self.file.key}:{self.name}" if self.name else self.file.key

    @property
    def latents(self) -> int:
        """How many latents (C, h, w) it holds."""
        return self.shape[0] if len(self.shape) == 4 else 1

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize

    def problem(self) -> str | None:
        """Why it cannot be latents of any network; None if it can."""
        shape = shape_text(self.shape)
        if self.dtype == "object":
            return "an array of Python objects, which is never unpickled; save numbers"
        if self.dtype not in FLOATS:
            return f"{self.dtype} {shape}, not floats; latents are {', '.join(FLOATS)}"
        if len(self.shape) not in (3, 4):
            return f"an array {shape}; give latents as (C, h, w) or (N, C, h, w)"
        if not all(self.shape):
            return f"an empty array {shape}"
        return None

    def misfit(self, channels: int) -> str | None:
        """Why it cannot be latents of a network with that many channels; None if it can."""
        found, shape = self.shape[-3], shape_text(self.shape)
        if found == channels:
            return None
        if self.shape[-1] == channels:
            last = f"an array {shape} with its {channels} channels last; "
            if len(self.shape) == 4:
                return f"{last}`np.moveaxis(z, -1, -3)` makes it (N, C, h, w)"
            return (
                f"{last}`np.moveaxis(z, -1, -3)` makes (C, h, w) of (h, w, C); tokens "
                "(N, h * w, C) need a reshape to (N, h, w, C) first"
            )
        return (
            f"an array {shape} of {found} channels, but the network of --weights has {channels}; "
            "give the checkpoint that they were made for"
        )


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape in messages; of a long one, its beginning."""
    sizes = [str(size) for size in shape[:6]] + ["..."] * (len(shape) > 6)
    return f"({', '.join(sizes)})"


@dataclass(frozen=True, slots=True)
class ForeignLatent:
    """One latent of an array: `key` names its picture; `index` is None if it is the whole array."""

    key: str
    array: ForeignArray
    index: int | None = None

    @property
    def file(self) -> FileEntry:
        """Its file."""
        return self.array.file

    @property
    def state(self) -> SourceState:
        """The state of its file when its header was read."""
        return self.array.state

    @property
    def label(self) -> str:
        """Its name in messages."""
        return self.array.label if self.index is None else f"{self.array.label}[{self.index}]"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        channels, rows, columns = self.array.shape[-3:]
        return channels, rows, columns

    @property
    def size(self) -> int:
        """The bytes of its data, as float32 or wider."""
        return math.prod(self.shape) * max(4, self.array.itemsize)

    def read(self) -> Latent:
        """The latent (C, h, w): float16 as it is, all others as float32.

        Raises:
            InputError: damaged, or its file changed.
            OSError: it cannot be read.
        """
        values = self._stored() if self.array.begin is not None else self._part_of_whole()
        if self.file.state() != self.state:
            raise InputError("it changed while it was read")
        if values.dtype == np.float16:
            return values
        with np.errstate(over="ignore"):  # a float64 may become infinity, which is looked for
            return values.astype(np.float32)

    def _stored(self) -> Latent:
        array, count = self.array, math.prod(self.shape)
        assert array.begin is not None
        with self.file.open() as file:
            file.seek(array.begin + (self.index or 0) * count * array.itemsize)
            data = file.read(count * array.itemsize)
        if len(data) != count * array.itemsize:
            raise InputError("truncated")
        return numbers_from(data, array.dtype, is_big=array.is_big).reshape(self.shape)

    def _part_of_whole(self) -> Latent:
        number = self.index if self.index is not None or len(self.array.shape) == 3 else 0
        if self.array.kind == "pt":
            from stae_cli.foreign.pickled import sample_of, tensors_of

            tensors = tensors_of(self.file.path, self.state)
            found: Latent = sample_of(tensors[self.array.name], number)
            return found
        with _unpacking:  # two threads would unpack the same array
            whole = _whole(self.array)
        part = whole if number is None else whole[number]
        return np.ascontiguousarray(part).astype(part.dtype.newbyteorder("="))


def numbers_from(data: bytes, dtype: str, *, is_big: bool = False) -> Latent:
    """Bytes as an array of floats in this machine's order; bfloat16 as float32."""
    order: Literal["<", ">"] = ">" if is_big else "<"
    if dtype == "bfloat16":
        return _widened(np.frombuffer(data, f"{order}u2"))
    return np.frombuffer(data, np.dtype(dtype).newbyteorder(order)).astype(dtype)


def _widened(bits: npt.NDArray[np.uint16]) -> Latent:
    """The bits of bfloat16 as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


@lru_cache(ARRAYS_HELD)  # its samples come one after another
def _whole(array: ForeignArray) -> Latent:
    with array.file.open() as file:
        if array.kind == "npy":
            found = npy.read_fortran(file, npy.read_header(file))
        else:
            with zipfile.ZipFile(file) as archive:
                found = npy.read_member(archive, f"{array.name}.npy")
    if array.dtype == "bfloat16":
        return _widened(found.view(">u2" if array.is_big else "<u2"))
    return found.astype(array.dtype, copy=False)

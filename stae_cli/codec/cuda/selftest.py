"""The self-test: on a CUDA device the fused form must agree with the plain one before it is used.

Triton compiles on the user's machine, with that machine's compiler and driver. What fails here, or
computes something else than torch's plain functions, is not used: results stay right, and only come
more slowly.
"""

from __future__ import annotations

import math
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import CalledProcessError

import torch
from torch import Tensor

from stae_cli.codec.cpu.affine import Placement
from stae_cli.codec.cpu.folding import PlainBackend
from stae_cli.codec.device import ran_out
from stae_cli.codec.inference import InferenceForm
from stae_cli.codec.tensors import patches_of
from stae_cli.network.architecture import Architecture
from stae_cli.network.stupid_ae import StupidAE

SWITCH = "STAE_TRITON"  # in the environment; 0 leaves the kernels out

# What the forms are tried on: height and width in latent positions. They do not fill the kernels'
# blocks, several lie in one, and chunks end within them.
SIZES = ((5, 7), (1, 1), (9, 3), (3, 11), (9, 9))
ROWS = 64  # encoded at once

# Two forms of one network round differently, at about 12 places in a stage's encoder and at 24 in
# its decoder. Each adds an independent error of 0.3 eps relative to the values' deviation, which
# the next norm keeps relative: sqrt(2 * 24) * 0.3 = 2 eps of the results' deviation in all. Twice
# that for weights that amplify it, and twice again for the scatter of small samples.
ROUNDINGS = 8
LEAST_EPS = 2.0**-19  # what float32 sums of 4608 products differ by, in another order


def choose_form(
    model: StupidAE, place: Placement, *, triton: bool = True
) -> tuple[InferenceForm, str | None]:
    """The fastest form that works on a device, and on CUDA why it is not the fused one.

    Args:
        model: the weights.
        place: the device and dtype.
        triton: False to do without; that needs no reason.

    Raises:
        RuntimeError: the device has run out of memory, which says nothing about Triton.
    """
    reason = None
    if place.device.type == "cuda" and triton:
        try:
            return fused_form(model, place), None
        except UnfusedError as error:
            reason = str(error)
    return InferenceForm(model, PlainBackend(place)), reason


class UnfusedError(Exception):
    """Why a device cannot use the fused form."""


def fused_form(model: StupidAE, place: Placement) -> InferenceForm:
    """The fused form, compared with the plain one on the same device in the same dtype.

    The model's own weights are used: the form that is tested is the one that runs afterwards, so
    nothing is compiled or folded for the test alone but the plain form.

    Raises:
        UnfusedError: they disagree, Triton does not work here, or `STAE_TRITON=0`.
        RuntimeError: the device has run out of memory.
    """
    if os.environ.get(SWITCH) == "0":
        raise UnfusedError(f"{SWITCH}=0")
    try:
        from stae_cli.codec.cuda.folding import FusedBackend

        fused = InferenceForm(model, FusedBackend(place))
        plain = InferenceForm(model, PlainBackend(place))
        trial = Trial(fused, plain, model.architecture)
        wrong = next((what for what, agrees in trial if not agrees), None)
    except UnfusedError:
        raise
    except ImportError as error:
        raise UnfusedError(f"Triton is not installed ({error})") from error
    except Exception as error:  # a compiler, a driver and two libraries raise here
        if ran_out(error):
            raise
        raise UnfusedError(f"Triton does not work here ({_explained(error)})") from error
    if wrong is not None:
        raise UnfusedError(f"Triton computes something else when {wrong}")
    return fused


def _explained(error: Exception) -> str:
    """Its first line; or what a failed C compiler was missing, which it printed to stderr only."""
    header = Path(str(sysconfig.get_config_var("INCLUDEPY")), "Python.h")
    if isinstance(error, CalledProcessError) and not header.exists():
        return f"`{header}` is missing: install Python's headers, on Debian `python3-dev`"
    return str(error).strip().partition("\n")[0]


class Trial:
    """Compares two forms of one network on a few small pictures: iterate over the comparisons.

    Args:
        fused: the form to be tested.
        plain: the form that is right, with the same device and dtype.
        architecture: of both.
    """

    def __init__(
        self, fused: InferenceForm, plain: InferenceForm, architecture: Architecture
    ) -> None:
        self._fused, self._plain = (form.encoding_at_once(ROWS) for form in (fused, plain))
        self._size = architecture.downsample
        eps = max(torch.finfo(plain.place.dtype).eps, LEAST_EPS)
        self._tolerance = ROUNDINGS * eps * len(architecture.stages) ** 0.5
        self._counts = [height * width for height, width in SIZES]

    def __iter__(self) -> Iterator[tuple[str, bool]]:
        """What is compared, and whether the forms agree."""
        fused, plain = self._fused, self._plain
        pictures = self._pictures()
        latents = plain.encode(pictures)
        yield "encoding bytes", self._agree(fused.encode(pictures), latents)
        floats = [_as_floats(picture) for picture in pictures]
        sound = fused.encode(floats)
        yield "encoding floats", self._agree(sound, plain.encode(floats))
        yield "a pixel is not finite", self._keeps_patches_apart(floats, sound)
        parts = zip(latents.split(self._counts), SIZES, strict=True)
        grids = [part.unflatten(0, size) for part, size in parts]
        pixels = self._patches(plain.decode(grids))
        yield "decoding", self._agree(self._patches(fused.decode(grids)), pixels)
        levels, finite = self._decoded(fused, grids)
        exact = pixels.float().add(1).mul(127.5).clamp(0, 255)
        good = pixels.isfinite().all(1)
        bound = 127.5 * self._bound(pixels[good]) + 0.5  # also rounded to integers
        near = _are_near(levels[good].float(), exact[good], bound)
        yield "decoding to bytes", near and bool(finite[good].all())
        yield "a latent is not finite", self._keeps_positions_apart(grids, levels)

    def _pictures(self) -> list[Tensor]:
        """(H, W, 3) uint8, drawn on the CPU: the same everywhere."""
        generator, size = torch.Generator("cpu").manual_seed(0), self._size
        shapes = [(height * size, width * size, 3) for height, width in SIZES]
        drawn = [
            torch.randint(256, shape, generator=generator, dtype=torch.uint8, device="cpu")
            for shape in shapes
        ]
        return [picture.to(self._plain.place.device) for picture in drawn]

    def _keeps_patches_apart(self, floats: Sequence[Tensor], sound: Tensor) -> bool:
        """Whether a pixel that is not finite shows, and changes no patch but its own."""
        spoilt = [floats[0].clone(), *floats[1:]]
        spoilt[0][0, -1, 1] = torch.nan  # in the last patch of the first row
        found = self._fused.encode(spoilt)
        others = sound.isfinite().all(1)
        others[SIZES[0][1] - 1] = False
        shows = torch.equal(found.isfinite().all(1), others)
        return shows and torch.equal(found[others], sound[others])

    def _keeps_positions_apart(self, grids: Sequence[Tensor], sound: Tensor) -> bool:
        """Whether a latent that is not finite shows, and changes no pixel that cannot see it.

        A library's convolution may spread it further than the network does; then it does so in the
        plain form too.
        """
        height, width = SIZES[-1]
        row, column, reach = height // 2, width // 2, self._plain.halo
        spoilt = [*grids[:-1], grids[-1].clone()]
        spoilt[-1][row, column, 0] = torch.inf
        levels, finite = self._decoded(self._fused, spoilt)
        _, apart = self._decoded(self._plain, spoilt)
        last = apart[-height * width :].view(height, width)  # of the last picture
        last[row - reach : row + reach + 1, column - reach : column + reach + 1] = False
        shows = not finite[-height * width :].view(height, width)[row, column]
        changes = (levels[apart].int() - sound[apart].int()).abs() > 1
        return shows and bool(finite[apart].all()) and not changes.any()

    def _decoded(self, form: InferenceForm, grids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Pixels (N, values) of all positions, and (N,) whether they are finite."""
        levels, finite = form.decode_levels(grids)
        cell = math.isqrt(form.positions_each)
        parts = zip(finite.split([n * cell**2 for n in self._counts]), SIZES, strict=True)
        whole = [part.view(h, cell, w, cell).all(3).all(1).flatten() for part, (h, w) in parts]
        return self._patches(levels), torch.cat(whole)

    def _patches(self, images: Sequence[Tensor]) -> Tensor:
        """Pixels (N, values) of all positions."""
        return torch.cat([patches_of(image, self._size) for image in images])

    def _agree(self, found: Tensor, meant: Tensor) -> bool:
        """Whether results (N, values) differ by rounding alone, where the dtype can hold them.

        Raises:
            UnfusedError: the weights overflow the dtype everywhere.
        """
        good = meant.isfinite().all(1)
        if not good.any():
            raise UnfusedError(f"these weights overflow {meant.dtype}")
        return _are_near(found[good].float(), meant[good].float(), self._bound(meant[good]))

    def _bound(self, results: Tensor) -> Tensor:
        return self._tolerance * results.float().std()


def _are_near(found: Tensor, meant: Tensor, bound: Tensor) -> bool:
    """Whether the root mean square of no position's and no value's errors exceeds the bound.

    Errors of rounding are spread evenly over (N, values); those of a wrong kernel stand out in some
    rows or some columns.
    """
    squares = (found - meant).square()
    return bool((squares.mean(0).sqrt() <= bound).all() & (squares.mean(1).sqrt() <= bound).all())


def _as_floats(picture: Tensor) -> Tensor:
    """In [-1, 1], with the strides of (3, H, W)."""
    return (picture.permute(2, 0, 1) / 127.5 - 1).contiguous().permute(1, 2, 0)

"""What a CUDA device and its software compute, tried before it is relied on.

Triton compiles on the user's machine, with that machine's compiler and driver; and torch's fused
products are no public interface. What fails here, or computes something else than torch's plain
functions, is not used: results stay right, and only come more slowly.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from subprocess import CalledProcessError
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import gelu

from stae_cli.codec.cpu.affine import Affine
from stae_cli.codec.cpu.layers import FieldHead, centred, normed, patches_of
from stae_cli.codec.memory import ran_out

SWITCH = "STAE_TRITON"  # in the environment; 0 leaves the kernels out
WITH_TENSOR_CORES = (8, 0)  # compute capability from which Triton's products use them
ROUNDINGS = 4  # of the result's dtype, relative to the result and to all results' deviation
Trials = Callable[[ModuleType, torch.device, torch.dtype], Iterator[tuple[str, Tensor, Tensor]]]


@lru_cache
def why_unfused(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a CUDA device goes without the kernels of `model.kernels`; None where it has them."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0"
    return _why_not("stae_cli.codec.cuda.kernels", _trials, device, dtype)


def _why_not(name: str, trials: Trials, device: torch.device, dtype: torch.dtype) -> str | None:
    try:
        module = import_module(name)
        has_gelu_epilogue(device, dtype)  # now, since trying it waits for the device
        wrong = next(
            (each for each, found, meant in trials(module, device, dtype)
             if not _agree(found, meant, dtype)), None,
        )  # fmt: skip
    except ImportError as error:
        return f"Triton is not installed ({error})"
    except Exception as error:  # a compiler, a driver and two libraries raise here
        if ran_out(error):  # which says nothing of Triton
            raise
        return f"Triton does not work here ({_told(error)})"
    return f"Triton computes something else for `{wrong}`" if wrong else None


def _told(error: Exception) -> str:
    """Its first line; of a C compiler that failed what it lacked, which it told stderr alone."""
    header = Path(str(sysconfig.get_config_var("INCLUDEPY")), "Python.h")
    if isinstance(error, CalledProcessError) and not header.exists():
        return f"`{header}` is missing: install Python's headers, on Debian `python3-dev`"
    return str(error).strip().partition("\n")[0]


@lru_cache
def has_tensor_cores(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether Triton multiplies matrices of this dtype on the device's tensor cores."""
    half = dtype in (torch.float16, torch.bfloat16)
    if device.type != "cuda" or not half:
        return False
    return torch.version.hip is not None or (
        torch.cuda.get_device_capability(device) >= WITH_TENSOR_CORES
    )


@lru_cache
def has_gelu_epilogue(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's product with a GELU at its end has the tanh approximation of it."""
    inputs = torch.linspace(-4, 4, 512, device=device).to(dtype).view(32, 16)
    weight = torch.eye(16, device=device, dtype=dtype)
    try:
        found = torch._addmm_activation(weight.new_zeros(16), inputs, weight, use_gelu=True)
    except (AttributeError, RuntimeError, TypeError):  # another torch, another interface
        return False
    tanh, exact = (gelu(inputs.double(), approximate=form) for form in ("tanh", "none"))
    # The two are 4.7e-4 apart at most, and half precision rounds single results by more than that.
    from_tanh, from_exact = (
        (found.double() - meant)[inputs < 0].square().mean() for meant in (tanh, exact)
    )
    return bool(from_tanh < from_exact) and _agree(found, tanh.float(), dtype)


def _drawing(device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    """Gives normally distributed numbers of any shape, the same ones each time."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator).to(device, dtype)


def _trials(
    kernels: ModuleType, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each kernel's name, what it computes, and what torch's plain functions do in float32."""
    drawn = _drawing(device, dtype)
    pixels = torch.arange(256, dtype=torch.uint8, device=device).repeat(3, 3)
    yield "centred", kernels.centred(dtype, pixels), centred(torch.float32, pixels)
    image = drawn(32, 24, 3).clamp_(-1, 1)
    bytes_, batch = pixels.view(3, 768)[:, :192].reshape(24, 8, 3), image.view(2, 16, 24, 3)
    for given in (image, bytes_, image.permute(1, 0, 2), batch.transpose(1, 2)):
        meant = centred(torch.float32, patches_of(given, 8))
        yield "cut", kernels.cut(given, 8, dtype), meant
    rows, product = drawn(37, 512), drawn(37, 512)
    lacking = drawn(512).float()
    yield "normed", kernels.normed(rows, lacking), normed(rows.float() + lacking)
    total = (rows.float() + product.float()).to(dtype).float()
    yield "add_normed", kernels.add_normed(rows, product, lacking), normed(total + lacking)
    yield "add_normed", rows, total
    raised = drawn(37, 2048) * 3
    gate, act = raised.float().chunk(2, 1)
    yield "geglu", kernels.geglu(raised), gate * gelu(act, approximate="tanh")
    if has_tensor_cores(device, dtype):
        yield from _painted(kernels, drawn(36, 32 * 32 + 3 * 32), drawn(64, 32), drawn(3, 64))


def _painted(
    kernels: ModuleType, made: Tensor, encoded: Tensor, constant: Tensor
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """One patch is not finite, which its neighbours must not feel."""
    made[5, 7] = torch.inf
    others = torch.arange(len(made), device=made.device) != 5
    identity = torch.eye(made.shape[1], device=made.device)
    generator = Affine(identity, identity.new_zeros(made.shape[1]))
    plain = FieldHead(generator, encoded.float(), constant.float()).painted(made.float()).mT
    pixels, finite = _images(kernels, made, encoded, constant, made.dtype)
    yield "paint", pixels[others], plain[others]
    yield "paint", finite.float(), others.float()
    levels, _ = _images(kernels, made, encoded, constant, torch.uint8)
    exact = pixels[others].float().add(1).mul(127.5).clamp(0, 255)
    near = (levels[others].float() - exact).abs() <= 0.5 + ROUNDINGS * _rounding(made.dtype) * 256
    yield "paint", near.float(), torch.ones_like(exact)


def _images(
    kernels: ModuleType, made: Tensor, encoded: Tensor, constant: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Two images, painted in two parts -> their patches (N, P, 3), and whether each is finite."""
    count, across = len(made), len(made) // 6
    canvas = made.new_empty(6 * 8, across * 8, 3, dtype=dtype)
    finite = kernels.room_for_finite(made, encoded)
    for part in (slice(0, 7), slice(7, count)):
        kernels.paint(
            made[part], encoded, constant, canvas.view(-1), finite[part],
            across=across, first=part.start,
        )  # fmt: skip
    return patches_of(canvas, 8).unflatten(1, (-1, 3)), finite.all(1)


def _agree(found: Tensor, meant: Tensor, dtype: torch.dtype) -> bool:
    bound = ROUNDINGS * _rounding(dtype) * (meant.square().mean().sqrt() + meant.abs())
    return bool(((found.float() - meant).abs() <= bound).all())


def _rounding(dtype: torch.dtype) -> float:
    return max(torch.finfo(dtype).eps, 1e-6)

"""The networks that a benchmark times, by name, and what they are given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import torch
from torch import Tensor

from stae_cli.benchmark.engines import COMPILE, ENGINES, ON_CPU, Engine, check_engine
from stae_cli.benchmark.peers import FACTOR, LATENT_CHANNELS, PEERS, count_peer, load_peer
from stae_cli.benchmark.report import Case
from stae_cli.checkpoints.checkpoint import Checkpoint
from stae_cli.checkpoints.tensor_files import fingerprint
from stae_cli.codec.codec import Codec
from stae_cli.errors import UsageError
from stae_cli.network.architecture import F8C16, Architecture
from stae_cli.network.flops import Cost, count
from stae_cli.network.stupid_ae import SEED, StupidAE, seeded

CodecMaker = Callable[[StupidAE, torch.device, torch.dtype], Codec]

REFERENCE = "reference"  # the plain module
CACHE_BYTES = 128 << 20  # more than the last cache of most devices
FEWEST, MOST = 2, 32  # buffers


def _unfused(model: StupidAE, device: torch.device, dtype: torch.dtype) -> Codec:
    """The codec without Triton kernels, which only CUDA devices run."""
    return Codec(model, device=device, dtype=dtype, triton=False)


# Other forms of the codec, which differ from it on CUDA devices only.
VARIANTS: Mapping[str, CodecMaker] = {"unfused": _unfused}


@dataclass(frozen=True)
class Contender:
    """A network on the device, and the count of its operations for one picture."""

    name: str
    encode: Callable[[Tensor], object]
    decode: Callable[[Tensor], object]
    cost: Callable[[int, int], Cost]
    latent_channels: int
    factor: int  # pixels on a side of one latent position
    dtype: torch.dtype  # of images and latents
    takes_pixels: bool = False  # uint8 instead of images
    compiles: bool = False  # at the first call, whose time says nothing then


def check_against(names: Sequence[str]) -> None:
    """Checks that every name is `reference`, one of VARIANTS, an engine or a known peer.

    Raises:
        UsageError: one is not.
    """
    for name in names:
        known = (REFERENCE, *ENGINES, *VARIANTS, *PEERS)
        if name not in known:
            raise UsageError(f"unknown network `{name}`", f"known are: {', '.join(known)}")


def check_installed(names: Sequence[str]) -> None:
    """Checks that the engines and peers among the names can be built.

    Raises:
        StaeError: a library that one needs is missing or broken.
    """
    for name in names:
        if name in PEERS:
            count_peer(name, FACTOR, FACTOR)
        elif name in ENGINES:
            check_engine(name)


def seeded_model(architecture: Architecture = F8C16) -> StupidAE:
    """A network with seeded weights: speed does not depend on them."""
    with seeded():
        return StupidAE(architecture).eval()


def seeded_checkpoint(architecture: Architecture = F8C16) -> Checkpoint:
    """The same as a checkpoint, for commands that record where weights came from."""
    model = seeded_model(architecture)
    tensors = model.state_dict()
    return Checkpoint("seeded", fingerprint(tensors), model.architecture, tensors, {})


def contender(name: str, model: StupidAE, device: torch.device, dtype: torch.dtype) -> Contender:
    """The network of that name; OURS is the codec itself.

    Raises:
        RuntimeError: it does not run on the device or in the dtype.
    """
    if name in PEERS:
        peer, cost = load_peer(name).to(device, dtype), partial(count_peer, name)
        return Contender(name, peer.encode, peer.decode, cost, LATENT_CHANNELS, FACTOR, dtype)
    sizes = model.architecture
    cost, channels, factor = partial(count, sizes), sizes.channels, sizes.downsample
    made: StupidAE | Engine | Codec
    if name == REFERENCE:
        made = deepcopy(model).eval().to(device, dtype)
    elif name in ENGINES:
        made = ENGINES[name](model, device, dtype)
    else:
        made = VARIANTS.get(name, _codec)(model, device, dtype)
    takes = made.dtype if isinstance(made, Engine) else dtype
    return Contender(
        name,
        made.encode,
        made.decode,
        cost,
        channels,
        factor,
        takes,
        takes_pixels=isinstance(made, Codec),
        compiles=name == COMPILE,
    )


def versions(names: Sequence[str]) -> dict[str, str]:
    """The versions of the libraries that the names come from, beside torch."""
    libraries = {name: name for name in ON_CPU} | dict.fromkeys(PEERS, "diffusers")
    used = dict.fromkeys(libraries[name] for name in names if name in libraries)
    return {library: version(library) for library in used}


def is_same_network(name: str) -> bool:
    """Whether the network of that name computes what the codec does."""
    return name not in PEERS


def _codec(model: StupidAE, device: torch.device, dtype: torch.dtype) -> Codec:
    return Codec(model, device=device, dtype=dtype)


class Inputs:
    """Seeded random tensors for one case, shared by the networks that take the same.

    There are more of them than a cache holds, so that no call finds its input there.

    Args:
        case: the size and number of pictures.
        device: where the tensors are.
        dtype: of images and latents.
    """

    def __init__(self, case: Case, *, device: torch.device, dtype: torch.dtype) -> None:
        self._case, self._device, self._dtype = case, device, dtype
        self._kept: dict[tuple[tuple[int, int, int], torch.dtype], list[Tensor]] = {}

    def pixels(self) -> list[Tensor]:
        """(B, H, W, 3) uint8 each."""
        return self._buffers((self._case.height, self._case.width, 3), torch.uint8)

    def images(self) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] each."""
        return self._buffers((3, self._case.height, self._case.width), self._dtype)

    def latents(self, channels: int, factor: int) -> list[Tensor]:
        """(B, channels, H/factor, W/factor) each."""
        shape = (channels, self._case.height // factor, self._case.width // factor)
        return self._buffers(shape, self._dtype)

    def _buffers(self, shape: tuple[int, int, int], dtype: torch.dtype) -> list[Tensor]:
        if (shape, dtype) not in self._kept:
            whole = (self._case.batch, *shape)
            many = min(max(CACHE_BYTES // (math.prod(whole) * dtype.itemsize) + 1, FEWEST), MOST)
            generator = torch.Generator(self._device).manual_seed(SEED)
            drawn = [self._drawn(whole, dtype, generator) for _ in range(many)]
            self._kept[shape, dtype] = drawn
        return self._kept[shape, dtype]

    def _drawn(
        self, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
    ) -> Tensor:
        if dtype == torch.uint8:
            return torch.randint(256, shape, dtype=dtype, device=self._device, generator=generator)
        return torch.empty(shape, dtype=dtype, device=self._device).uniform_(
            -1, 1, generator=generator
        )

"""The networks that a benchmark times, each with what it likes to be given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from stae_cli.benchmark.peers import FACTOR, LATENT_CHANNELS, PEERS, count_peer, load_peer
from stae_cli.benchmark.report import OURS
from stae_cli.checkpoints.checkpoint import Checkpoint, fingerprint
from stae_cli.codec.codec import Codec
from stae_cli.errors import UsageError
from stae_cli.network.architecture import F8C16, Architecture
from stae_cli.network.flops import Cost, count
from stae_cli.network.stupid_ae import StupidAE, seeded

CodecMaker = Callable[[StupidAE, torch.device, torch.dtype], Codec]

REFERENCE = "reference"


def _unfused(model: StupidAE, device: torch.device, dtype: torch.dtype) -> Codec:
    """Without Triton kernels, which only CUDA devices run."""
    return Codec(model, device=device, dtype=dtype, triton=False)


# Other forms of the codec, which differ from it on CUDA devices only.
VARIANTS: Mapping[str, CodecMaker] = {"unfused": _unfused}


@dataclass(frozen=True)
class Contender:
    """A network on the device, and the count of its operations for one picture."""

    name: str
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    cost: Callable[[int, int], Cost]
    latent_channels: int
    factor: int  # pixels on a side of one latent position
    takes_pixels: bool = False  # uint8 instead of floats


def check_against(names: Sequence[str]) -> None:
    """Checks that every name is `reference`, one of VARIANTS or a known peer.

    Raises:
        UsageError: one is not.
    """
    for name in names:
        known = (REFERENCE, *VARIANTS, *PEERS)
        if name not in known:
            raise UsageError(f"unknown network `{name}`", f"known are: {', '.join(known)}")


def check_installed(names: Sequence[str]) -> None:
    """Checks that the peers among the names can be made.

    Raises:
        StaeError: the library that they come from is missing or broken.
    """
    for name in names:
        if name in PEERS:
            count_peer(name, FACTOR, FACTOR)


def seeded_model(architecture: Architecture = F8C16) -> StupidAE:
    """An architecture with seeded weights, on which speed does not depend."""
    with seeded():
        return StupidAE(architecture).eval()


def seeded_checkpoint(architecture: Architecture = F8C16) -> Checkpoint:
    """The same as a checkpoint, for what records where its weights came from."""
    model = seeded_model(architecture)
    tensors = model.state_dict()
    return Checkpoint("seeded", fingerprint(tensors), model.architecture, tensors, {})


def contender(name: str, codec: Codec, model: StupidAE) -> Contender:
    """The network of that name on the codec's device in its dtype; OURS is the codec itself."""
    if name == OURS:
        return _codec(OURS, codec, model)
    if name == REFERENCE:
        return _reference(codec, model)
    if name in VARIANTS:
        return _codec(name, VARIANTS[name](model, codec.device, codec.dtype), model)
    return _peer(codec, name)


def _codec(name: str, codec: Codec, model: StupidAE) -> Contender:
    sizes = model.architecture
    return Contender(
        name,
        codec.encode,
        codec.decode,
        lambda width, height: count(sizes, width, height),
        sizes.channels,
        sizes.downsample,
        takes_pixels=True,
    )


def _reference(codec: Codec, model: StupidAE) -> Contender:
    sizes = model.architecture
    plain = deepcopy(model).eval().to(codec.device, codec.dtype)
    return Contender(
        REFERENCE,
        plain.encode,
        plain.decode,
        lambda width, height: count(sizes, width, height),
        sizes.channels,
        sizes.downsample,
    )


def _peer(codec: Codec, name: str) -> Contender:
    peer = load_peer(name).to(codec.device, codec.dtype)
    return Contender(
        name,
        peer.encode,
        peer.decode,
        lambda width, height: count_peer(name, width, height),
        LATENT_CHANNELS,
        FACTOR,
    )

"""The networks that a benchmark times, each with what it likes to be given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

from torch import Tensor

from stae_cli.benchmark.report import OURS
from stae_cli.errors import UsageError
from stae_cli.model.architecture import F8C16, Architecture
from stae_cli.model.checkpoint import Checkpoint, fingerprint
from stae_cli.model.codec import Codec
from stae_cli.model.flops import Cost, count
from stae_cli.model.peers import FACTOR, LATENT_CHANNELS, PEERS, count_peer, load_peer
from stae_cli.model.seeding import seeded
from stae_cli.model.stupid_ae import StupidAE

REFERENCE = "reference"
UNFUSED = "unfused"  # the codec without Triton kernels, which only CUDA devices run


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
    """Checks that every name is `reference`, `unfused` or a known peer.

    Raises:
        UsageError: one is not.
    """
    for name in names:
        if name not in (REFERENCE, UNFUSED, *PEERS):
            known = ", ".join((REFERENCE, UNFUSED, *PEERS))
            raise UsageError(f"unknown network `{name}`", f"known are: {known}")


def seeded_model(architecture: Architecture = F8C16) -> StupidAE:
    """An architecture with seeded weights, on which speed does not depend."""
    with seeded():
        return StupidAE(architecture).eval()


def seeded_checkpoint(architecture: Architecture = F8C16) -> Checkpoint:
    """The same as a checkpoint, for what records where its weights came from."""
    model = seeded_model(architecture)
    tensors = model.state_dict()
    return Checkpoint("seeded", fingerprint(tensors), model.architecture, tensors, {})


def contenders(codec: Codec, model: StupidAE, against: Sequence[str]) -> list[Contender]:
    """The codec, then each of `against` on the codec's device in its dtype."""
    found = [_codec(OURS, codec, model)]
    for name in dict.fromkeys(against):
        if name == REFERENCE:
            found.append(_reference(codec, model))
        elif name == UNFUSED:
            plain = Codec(model, device=codec.device, dtype=codec.dtype, triton=False)
            found.append(_codec(UNFUSED, plain, model))
        else:
            found.append(_peer(codec, name))
    return found


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

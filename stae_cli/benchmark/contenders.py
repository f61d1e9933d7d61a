"""The networks that a benchmark times: stae's forms, and other autoencoders with seeded weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from stae_cli.benchmark.report import OURS, Case
from stae_cli.checkpoints.checkpoint import Checkpoint
from stae_cli.checkpoints.tensor_files import fingerprint
from stae_cli.codec.codec import Codec
from stae_cli.errors import StaeError, UsageError
from stae_cli.network.architecture import F8C16, Architecture
from stae_cli.network.flops import Cost, check_size, count, count_stage
from stae_cli.network.stupid_ae import SEED, StupidAE, seeded

CodecMaker = Callable[[StupidAE, torch.device, torch.dtype], Codec]

REFERENCE = "reference"
CACHE_BYTES = 128 << 20  # more than the last cache of most devices
FEWEST, MOST = 2, 32  # buffers

# Of the peers.
FACTOR = 8
LATENT_CHANNELS = 4


def _unfused(model: StupidAE, device: torch.device, dtype: torch.dtype) -> Codec:
    """The codec without Triton kernels, which only CUDA devices run."""
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
    """Checks that the peers among the names can be built.

    Raises:
        StaeError: the library that they come from is missing or broken.
    """
    for name in names:
        if name in PEERS:
            count_peer(name, FACTOR, FACTOR)


def seeded_model(architecture: Architecture = F8C16) -> StupidAE:
    """A network with seeded weights: speed does not depend on them."""
    with seeded():
        return StupidAE(architecture).eval()


def seeded_checkpoint(architecture: Architecture = F8C16) -> Checkpoint:
    """The same as a checkpoint, for commands that record where weights came from."""
    model = seeded_model(architecture)
    tensors = model.state_dict()
    return Checkpoint("seeded", fingerprint(tensors), model.architecture, tensors, {})


def contender(name: str, codec: Codec, model: StupidAE) -> Contender:
    """The network of that name on the codec's device in its dtype; OURS is the codec itself."""
    if name == REFERENCE:
        plain = deepcopy(model).eval().to(codec.device, codec.dtype)
        return _stupid_ae(name, plain, model.architecture, takes_pixels=False)
    if name in VARIANTS:
        codec = VARIANTS[name](model, codec.device, codec.dtype)
    elif name != OURS:
        peer, cost = load_peer(name).to(codec.device, codec.dtype), partial(count_peer, name)
        return Contender(name, peer.encode, peer.decode, cost, LATENT_CHANNELS, FACTOR)
    return _stupid_ae(name, codec, model.architecture, takes_pixels=True)


def _stupid_ae(
    name: str, network: Codec | StupidAE, sizes: Architecture, *, takes_pixels: bool
) -> Contender:
    return Contender(
        name,
        network.encode,
        network.decode,
        partial(count, sizes),
        sizes.channels,
        sizes.downsample,
        takes_pixels=takes_pixels,
    )


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


@dataclass(frozen=True)
class Peer:
    """An autoencoder that takes (B, 3, H, W) in [-1, 1] and has (B, 4, H/8, W/8) latents."""

    encoder: nn.Module
    decoder: nn.Module

    def encode(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 4, H/8, W/8); of a KL encoder's moments the mean."""
        return self.encoder(image)[:, :LATENT_CHANNELS]

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) -> (B, 3, 8h, 8w)."""
        return self.decoder(latents)

    def to(self, device: torch.device, dtype: torch.dtype) -> Peer:
        """The same network elsewhere; its modules are moved, not copied."""
        return Peer(self.encoder.to(device, dtype), self.decoder.to(device, dtype))


def check_peers(names: Sequence[str]) -> None:
    """Checks that every name is a known peer, without importing anything.

    Raises:
        UsageError: one is not.
    """
    for name in names:
        if name not in PEERS:
            raise UsageError(f"unknown network `{name}`", f"known are: {', '.join(PEERS)}")


def peers_are_installed() -> bool:
    """Whether the library that the peers come from is there."""
    return find_spec("diffusers") is not None


def load_peer(name: str) -> Peer:
    """A peer with seeded weights in float32 on the CPU, in evaluation mode.

    Raises:
        UsageError: no such peer.
        StaeError: diffusers is not installed.
    """
    check_peers([name])
    with seeded():
        network = PEERS[name]().eval().requires_grad_(False)
    return Peer(network.encoder, network.decoder)


def count_peer(name: str, width: int, height: int) -> Cost:
    """Counts a peer for one picture of `width` x `height` pixels.

    Raises:
        UsageError: no such peer, or a side is not a multiple of 8.
        StaeError: diffusers is not installed.
    """
    check_size(width, height, multiple=FACTOR)
    with torch.device("meta"):
        peer = load_peer(name)
        image = torch.empty(1, 3, height, width)
        latents = torch.empty(1, LATENT_CHANNELS, height // FACTOR, width // FACTOR)
    return Cost(
        name,
        width,
        height,
        (latents.shape[1], latents.shape[2], latents.shape[3]),
        count_stage("encoder", peer.encoder, image),
        count_stage("decoder", peer.decoder, latents),
    )


def _sdxl() -> Any:
    """The VAE of Stable Diffusion XL, without the two 1x1 convs on its latents."""
    return _diffusers_class("AutoencoderKL")(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=32,
        mid_block_add_attention=True,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _taesd() -> Any:
    """TAESD, which is what AutoencoderTiny's defaults describe."""
    return _diffusers_class("AutoencoderTiny")()


PEERS: Mapping[str, Callable[[], Any]] = {"sdxl": _sdxl, "taesd": _taesd}


def _diffusers_class(name: str) -> Any:
    try:
        return getattr(import_module("diffusers"), name)  # slow to import: only when it is needed
    except ModuleNotFoundError as error:
        raise StaeError(
            "comparing with other networks needs diffusers", "run `pip install 'stae[peers]'`"
        ) from error
    except (ImportError, RuntimeError) as error:
        raise StaeError(
            f"diffusers is installed but cannot be imported: {error}",
            "run `pip install --upgrade 'stae[peers]'`",
        ) from error

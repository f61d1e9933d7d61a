"""Other autoencoders to compare with, with seeded weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from stae_cli.checkpoints.peers import diffusers
from stae_cli.errors import UsageError
from stae_cli.network.flops import Cost, check_size, count_stage
from stae_cli.network.stupid_ae import seeded

FACTOR = 8
LATENT_CHANNELS = 4


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
    return diffusers().AutoencoderKL(
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
    return diffusers().AutoencoderTiny()


PEERS: Mapping[str, Callable[[], Any]] = {"sdxl": _sdxl, "taesd": _taesd}

"""stae: images to latents and back with StupidAE.

The names below are imported on first use: `stae --help` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from stae_cli._version import __version__

if TYPE_CHECKING:
    from stae_cli.checkpoints.checkpoint import load_model as load_model
    from stae_cli.codec.codec import Codec as Codec
    from stae_cli.codec.tensors import PackedLatents as PackedLatents
    from stae_cli.errors import StaeError as StaeError
    from stae_cli.images.read import read_image as read_image
    from stae_cli.latents.dataset import LatentDataset as LatentDataset
    from stae_cli.latents.dataset import collate_latents as collate_latents
    from stae_cli.latents.listing import read_latent as read_latent
    from stae_cli.network.architecture import Architecture as Architecture
    from stae_cli.network.stupid_ae import StupidAE as StupidAE

_HOMES = {
    "Architecture": "stae_cli.network.architecture",
    "Codec": "stae_cli.codec.codec",
    "LatentDataset": "stae_cli.latents.dataset",
    "PackedLatents": "stae_cli.codec.tensors",
    "StaeError": "stae_cli.errors",
    "StupidAE": "stae_cli.network.stupid_ae",
    "collate_latents": "stae_cli.latents.dataset",
    "load_model": "stae_cli.checkpoints.checkpoint",
    "read_image": "stae_cli.images.read",
    "read_latent": "stae_cli.latents.listing",
}

__all__ = [
    "Architecture",
    "Codec",
    "LatentDataset",
    "PackedLatents",
    "StaeError",
    "StupidAE",
    "__version__",
    "collate_latents",
    "load_model",
    "read_image",
    "read_latent",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""stae: images to latents and back with StupidAE.

The names below are imported on first use: `stae --help` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from stae_cli._version import __version__

if TYPE_CHECKING:
    from stae_cli.codec.codec import Codec as Codec
    from stae_cli.codec.packed import PackedLatents as PackedLatents
    from stae_cli.errors import StaeError as StaeError
    from stae_cli.latents.dataset import LatentDataset as LatentDataset
    from stae_cli.latents.dataset import collate_latents as collate_latents
    from stae_cli.network.architecture import Architecture as Architecture
    from stae_cli.network.stupid_ae import StupidAE as StupidAE

_HOMES = {
    "Architecture": "stae_cli.network.architecture",
    "Codec": "stae_cli.codec.codec",
    "LatentDataset": "stae_cli.latents.dataset",
    "PackedLatents": "stae_cli.codec.packed",
    "StaeError": "stae_cli.errors",
    "StupidAE": "stae_cli.network.stupid_ae",
    "collate_latents": "stae_cli.latents.dataset",
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
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

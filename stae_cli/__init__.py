"""stae: images to latents and back with StupidAE.

The names below are imported on first use, so that `stae --help` need not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stae_cli.errors import StaeError as StaeError
    from stae_cli.model.architecture import Architecture as Architecture
    from stae_cli.model.codec import Codec as Codec
    from stae_cli.model.packed import PackedLatents as PackedLatents
    from stae_cli.model.stupid_ae import StupidAE as StupidAE
    from stae_cli.pipeline.dataset import LatentDataset as LatentDataset
    from stae_cli.pipeline.dataset import collate_latents as collate_latents

__version__ = "0.1.0"

_HOMES = {
    "Architecture": "stae_cli.model.architecture",
    "Codec": "stae_cli.model.codec",
    "LatentDataset": "stae_cli.pipeline.dataset",
    "PackedLatents": "stae_cli.model.packed",
    "StaeError": "stae_cli.errors",
    "StupidAE": "stae_cli.model.stupid_ae",
    "collate_latents": "stae_cli.pipeline.dataset",
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

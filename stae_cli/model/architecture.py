"""The sizes that define one StupidAE, and the named ones."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

from stae_cli.errors import CheckpointError


@dataclass(frozen=True)
class Architecture:
    """Sizes of a StupidAE; everything else about the network follows from them.

    `patch` pixels on a side become one latent position of `latent_channels` numbers.
    The decoder alternates `decoder_pairs` times a spatial (3x3) and a GEGLU block.
    """

    name: str
    patch: int = 8
    latent_channels: int = 16
    width: int = 512
    encoder_blocks: int = 2
    decoder_pairs: int = 2
    head_width: int = 32

    @property
    def halo(self) -> int:
        """Latent positions on each side that a decoded patch depends on: one per 3x3 conv."""
        return self.decoder_pairs

    def describe(self) -> str:
        """The text that names this architecture in a checkpoint's metadata."""
        if PRESETS.get(self.name) == self:
            return self.name
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))


F8C16 = Architecture("f8c16")

PRESETS = {F8C16.name: F8C16}


def parse_architecture(text: str) -> Architecture:
    """The inverse of `Architecture.describe`: a preset's name, or a JSON object of sizes.

    Raises:
        CheckpointError: the text names no preset and describes no network.
    """
    if text in PRESETS:
        return PRESETS[text]
    sizes = _json_object(text)
    known = {field.name for field in fields(Architecture)}
    if sizes is None or "name" not in sizes or not set(sizes) <= known:
        raise CheckpointError(
            f"unknown architecture `{text[:80]}`", f"this version knows: {', '.join(PRESETS)}"
        )
    name = sizes.pop("name")
    numbers = {key: size for key, size in sizes.items() if type(size) is int and 0 < size < 1 << 16}
    if not isinstance(name, str) or name in PRESETS or numbers != sizes:
        raise CheckpointError(f"impossible architecture `{text[:80]}`")
    return Architecture(name, **numbers)


def _json_object(text: str) -> dict[str, object] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None

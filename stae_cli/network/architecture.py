"""The sizes that define one StupidAE, and the family's named ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from stae_cli.errors import CheckpointError, UsageError

Head = Literal["neural_field", "pixel_shuffle"]
KERNELS = (1, 3)
UNIT = 8  # pixels on a side of a patch of the published network: what budgets count in


@dataclass(frozen=True)
class Stage:
    """One autoencoder between two grids: cells of `patch` x `patch` `inputs` become `channels`."""

    inputs: int
    patch: int
    channels: int
    width: int
    encoder_blocks: int
    decoder_pairs: int
    decoder_kernel: int
    head: Head
    head_width: int

    @property
    def halo(self) -> int:
        """Positions on each side that a decoded cell depends on: one per 3x3 conv."""
        return self.decoder_pairs * (self.decoder_kernel // 2)


@dataclass(frozen=True)
class SecondStage:
    """Cells of `patch` x `patch` latents of the first stage become `latent_channels` numbers."""

    latent_channels: int
    patch: int = 4


@dataclass(frozen=True)
class Architecture:
    """Sizes of a StupidAE; everything else about the network follows from them.

    `patch` pixels on a side become one position of `latent_channels` numbers. A decoder block is
    a pair of a spatial block, whose last convolution has `decoder_kernel` (3 or 1) taps on a side,
    and a GEGLU block. The head paints a patch as a `neural_field`, whose layers have `head_width`
    units, or by a `pixel_shuffle`. A `second` stage of the same width and blocks, without any 3x3
    convolution, maps cells of the first one's latents to its own: those are the network's.

    Raises:
        UsageError: an unknown kernel or head.
    """

    name: str
    patch: int = 8
    latent_channels: int = 16
    width: int = 512
    encoder_blocks: int = 2
    decoder_pairs: int = 2
    decoder_kernel: int = 3
    head: Head = "neural_field"
    head_width: int = 32
    second: SecondStage | None = None

    def __post_init__(self) -> None:
        if self.decoder_kernel not in KERNELS or self.head not in get_args(Head):
            raise UsageError(
                f"impossible decoder: kernel {self.decoder_kernel}, head `{self.head}`",
                f"kernels are 1 and 3, heads {' and '.join(get_args(Head))}",
            )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The autoencoders that follow each other, the one that takes pixels first."""
        sizes = (self.width, self.encoder_blocks, self.decoder_pairs)
        first = Stage(
            3, self.patch, self.latent_channels, *sizes,
            self.decoder_kernel, self.head, self.head_width,
        )  # fmt: skip
        if self.second is None:
            return (first,)
        second = Stage(
            self.latent_channels, self.second.patch, self.second.latent_channels, *sizes,
            1, "pixel_shuffle", self.head_width,
        )  # fmt: skip
        return first, second

    @property
    def blocks(self) -> int:
        """How many blocks of layers there are, each with tensors of its own."""
        return sum(stage.encoder_blocks + 2 * stage.decoder_pairs for stage in self.stages)

    @property
    def first(self) -> Architecture:
        """The first stage by itself, by the name of its preset where it has one."""
        alone = replace(self, second=None)
        return next((preset for preset in PRESETS.values() if preset.is_like(alone)), alone)

    @property
    def downsample(self) -> int:
        """Pixels on a side of one position of the network's latents."""
        return self.patch * (self.second.patch if self.second else 1)

    @property
    def channels(self) -> int:
        """Channels of the network's latents."""
        return self.second.latent_channels if self.second else self.latent_channels

    @property
    def units(self) -> int:
        """How many patches of 8x8 pixels one position stands for, at least 1."""
        return max(1, self.downsample // UNIT) ** 2

    @property
    def halo(self) -> int:
        """Positions on each side that a decoded patch depends on, the network's field of view."""
        reach = self.stages[0].halo
        return -(-reach // self.second.patch) if self.second else reach

    def is_like(self, other: Architecture) -> bool:
        """Whether both describe the same network, whatever they are called."""
        return replace(self, name="") == replace(other, name="")

    def is_named(self, text: str) -> bool:
        """Whether a text that `describe` wrote, now or in an earlier version, means this one."""
        try:
            return parse_architecture(text) == self
        except CheckpointError:
            return False

    def describe(self) -> str:
        """The text that names this architecture in a checkpoint's metadata.

        A preset's name, or a JSON object of what differs from the published sizes.
        """
        if PRESETS.get(self.name) == self:
            return self.name
        defaults = {field.name: field.default for field in fields(self)}
        sizes = {name: size for name, size in asdict(self).items() if size != defaults[name]}
        return json.dumps(sizes, sort_keys=True, separators=(",", ":"))


F8C16 = Architecture("f8c16")
F8C32 = Architecture("f8c32", latent_channels=32)

PRESETS = {
    preset.name: preset
    for preset in (
        F8C16,
        F8C32,
        Architecture("f8c16-1x1", decoder_kernel=1),
        Architecture("f8c16-shuffle", head="pixel_shuffle"),
        # Of 64 numbers, 4x4 cells of 32 channels instead of 16 make no better ones (0.01 dB on
        # kodak, both stages linear); of 256, cells of 16 channels have no more to begin with, and
        # 32 channels gain 0.8 dB.
        replace(F8C16, name="f32c64", second=SecondStage(64)),
        replace(F8C32, name="f32c256", second=SecondStage(256)),
        # A field of 32 units is too small for 1024 pixels: 23.1 dB from the linear start, not 30.3.
        Architecture("f32c256-naive", patch=32, latent_channels=256, head="pixel_shuffle"),
    )
}


def preset(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in PRESETS:
        raise UsageError(f"unknown architecture `{name}`", f"known are: {', '.join(PRESETS)}")
    return PRESETS[name]


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
    architecture = _built(sizes)
    if architecture is None:
        raise CheckpointError(f"impossible architecture `{text[:80]}`")
    return architecture


def _built(sizes: dict[str, Any]) -> Architecture | None:
    """What the sizes describe; None if that is not a network."""
    name, head, second = (sizes.pop(key, None) for key in ("name", "head", "second"))
    if not isinstance(name, str) or name in PRESETS or not _are_sizes(sizes):
        return None
    if head is not None:
        sizes["head"] = head
    if second is not None:
        if not isinstance(second, dict) or not _are_sizes(second):
            return None
        if not {"latent_channels"} <= set(second) <= {"latent_channels", "patch"}:
            return None
        sizes["second"] = SecondStage(**second)
    try:
        return Architecture(name, **sizes)
    except UsageError:
        return None


def _are_sizes(values: Mapping[str, object]) -> bool:
    return all(type(size) is int and 0 < size < 1 << 16 for size in values.values())


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None

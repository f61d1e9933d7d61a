"""What a network costs: floating-point operations and parameters, per stage and per layer.

Two operations per multiply-add, matrix products only (convolutions, linear layers, matmuls), as
torch's `FlopCounterMode` counts them; norms, biases and activations are a fraction of a percent.
Counted on the meta device, so that nothing is computed and no weights are needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stae_cli.errors import UsageError
from stae_cli.network.architecture import F8C16, Architecture
from stae_cli.network.stupid_ae import StupidAE


@dataclass(frozen=True)
class Flops:
    """Operations by kind; `matmul` is every matrix product whose factors are both activations."""

    convolution: int = 0
    linear: int = 0
    matmul: int = 0

    @property
    def total(self) -> int:
        return self.convolution + self.linear + self.matmul

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Layer:
    """What one module does and owns itself, its children left out."""

    path: str
    flops: Flops
    parameters: int


@dataclass(frozen=True)
class Stage:
    """The encoder or the decoder, for one picture. The layers sum to its figures exactly."""

    name: str
    layers: Sequence[Layer]

    @property
    def flops(self) -> Flops:
        return sum((layer.flops for layer in self.layers), start=Flops())

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)


@dataclass(frozen=True)
class Cost:
    """What a network needs for one picture of `width` x `height` pixels."""

    network: str
    width: int
    height: int
    latent: tuple[int, int, int]  # channels, rows, columns
    encoder: Stage
    decoder: Stage

    @property
    def stages(self) -> tuple[Stage, Stage]:
        return self.encoder, self.decoder


@dataclass(frozen=True)
class Published:
    """Figures that others give for 1024x1024, and why ours differ."""

    source: str
    encoder_flops: float
    decoder_flops: float
    why: str
    encoder_parameters: float | None = None


PUBLISHED_SIZE = 1024
MODEL_CARD = "model card of Muinez/StupidAE on the Hugging Face hub"
PUBLISHED: Mapping[str, Published] = {
    F8C16.name: Published(
        MODEL_CARD,
        124.18e9,
        318.52e9,
        "The published decoder figure is what `calflops` prints: it adds biases and activations "
        "and does not see the head's two batched matmuls. The published encoder figure, and its "
        "~3.8M parameters, fit an encoder with one more 512->512 layer and an output of 32 "
        "channels (mean and log-variance), so it probably describes an earlier KL encoder; the "
        "released one is smaller.",
        encoder_parameters=3.8e6,
    ),
    "sdxl": Published(
        MODEL_CARD,
        4.34e12,
        9.93e12,
        "The published figures, again those of `calflops`, leave out the two matmuls of the "
        "attention.",
    ),
}


def count(architecture: Architecture, width: int, height: int) -> Cost:
    """Counts a StupidAE for one picture of `width` x `height` pixels.

    Raises:
        UsageError: a side is not a multiple of the patch.
    """
    check_size(width, height, multiple=architecture.downsample)
    with torch.device("meta"):
        model = StupidAE(architecture)
        image = torch.empty(1, 3, height, width)
        grid = (height // architecture.downsample, width // architecture.downsample)
        latents = torch.empty(1, architecture.channels, *grid)
    return Cost(
        architecture.name,
        width,
        height,
        (architecture.channels, *grid),
        count_stage("encoder", model.encoder, image),
        count_stage("decoder", model.decoder, latents),
    )


def check_size(width: int, height: int, *, multiple: int) -> None:
    """Checks that a network can take pictures of this size as they are.

    Raises:
        UsageError: a side is not a positive multiple of `multiple`.
    """
    if width < 1 or height < 1 or width % multiple or height % multiple:
        raise UsageError(
            f"size {width}x{height} has a side that is not a multiple of {multiple}",
            f"give multiples of {multiple}, such as 512 or 1024",
        )


def count_stage(name: str, module: nn.Module, example: Tensor) -> Stage:
    """Counts one call of `module`; both it and its input are on the meta device.

    Layers are in the order of the module's definition and named by their paths below `name`.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(example)
    operations = _own_operations(counter.get_flop_counts())
    layers = [
        Layer(
            f"{name}.{path}".removesuffix("."),
            _by_kind(part, operations.get(path, Counter())),
            sum(parameter.numel() for parameter in part.parameters(recurse=False)),
        )
        for path, part in module.named_modules()
    ]
    return Stage(name, tuple(layer for layer in layers if layer.flops.total or layer.parameters))


def _own_operations(counts: Mapping[str, Mapping[Any, int]]) -> dict[str, Counter[Any]]:
    """FlopCounterMode's counts, which include a module's children, without them.

    Its paths start with the root's class name; "Global" is the root once more.
    """
    whole = {path.partition(".")[2]: Counter(each) for path, each in counts.items()}
    own = {path: Counter(each) for path, each in whole.items()}
    for path in filter(None, whole):
        parent = path.rpartition(".")[0]
        while parent not in whole:  # a container that is never called itself
            parent = parent.rpartition(".")[0]
        own[parent].subtract(whole[path])
    return own


def _by_kind(module: nn.Module, operations: Counter[Any]) -> Flops:
    convolution = operations.pop(torch.ops.aten.convolution, 0)
    others = operations.total()
    if isinstance(module, nn.Linear):  # with inputs that do not flatten it is a plain matmul
        return Flops(convolution, linear=others)
    return Flops(convolution, matmul=others)

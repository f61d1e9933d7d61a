"""StupidAE as an `nn.Module` that reads like its description: the meaning of the model.

The network is the published one (Muinez/StupidAE on the Hugging Face hub), its state-dict names
included, so that the published checkpoint loads strictly. Its head follows PixNerd
(arXiv 2507.23268). In half precision the norms are computed in float32, since x^2 of a float16
activation overflows past 256 and a zero vector would give 0/0.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from stae_cli.errors import CheckpointError
from stae_cli.network.architecture import F8C16, Architecture, Stage

CHANNEL_NORM_EPS = 1e-8
HEAD_NORM_EPS = 2.0**-23  # what nn.RMSNorm's default means in float32
COLUMN_NORM_FLOOR = 1e-12
SEED = 20250801


class RMSNorm(nn.Module):
    """x * rsqrt(mean(x^2) + eps) * weight over dimension `dim`, computed in float32."""

    def __init__(self, channels: int, *, dim: int, eps: float) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(self.dim, keepdim=True) + self.eps)
        weight = self.weight.float()
        if self.dim == 1:  # (B, C, h, w): the weight runs along the channels
            weight = weight[:, None, None]
        return (wide * scale * weight).to(x.dtype)


class GegluMlp(nn.Module):
    """1x1 convs: width -> 2 x hidden, gate * tanh-GELU(act), hidden -> width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_up = nn.Conv2d(width, 4 * width, 1)
        self.conv_down = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate, act = self.conv_up(x).chunk(2, dim=1)
        return self.conv_down(gate * gelu(act, approximate="tanh"))


class GegluBlock(nn.Module):
    """x + mlp(norm(x)); no position sees another."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width, dim=1, eps=CHANNEL_NORM_EPS)
        self.mlp = GegluMlp(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class SpatialBlock(nn.Module):
    """x + conv3x3(tanh-GELU(conv1x1(norm(x)))), zero padding: one neighbour on each side.

    With `kernel` 1 in place of 3 there are no neighbours.
    """

    def __init__(self, width: int, kernel: int = 3) -> None:
        super().__init__()
        self.norm = RMSNorm(width, dim=1, eps=CHANNEL_NORM_EPS)
        self.mlp = nn.Sequential(
            nn.Conv2d(width, width, 1),
            nn.GELU(approximate="tanh"),
            nn.Conv2d(width, width, kernel, padding=kernel // 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class Projection(nn.Module):
    """1x1 conv, exact GELU, 1x1 conv: between the latents and the network's width."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1), nn.GELU(), nn.Conv2d(hidden, outputs, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Encoder(nn.Module):
    """(B, inputs, H, W) -> (B, channels, H/patch, W/patch); patches never mix."""

    def __init__(self, sizes: Stage) -> None:
        super().__init__()
        self.initial = nn.Sequential(
            nn.Conv2d(sizes.inputs, sizes.width, sizes.patch, stride=sizes.patch)
        )
        self.blocks = nn.Sequential(*(GegluBlock(sizes.width) for _ in range(sizes.encoder_blocks)))
        self.out = Projection(sizes.width, sizes.width, sizes.channels)

    def forward(self, image: Tensor) -> Tensor:
        return self.out(self.blocks(self.initial(image)))


class NeuralField(nn.Module):
    """Writes a small coordinate MLP per patch and evaluates it at every pixel's position.

    y = silu(norm(pos) @ L1) @ L2 + pos, where L1 (its columns normalised) and L2 are generated
    from the patch's feature.
    """

    def __init__(self, sizes: Stage) -> None:
        super().__init__()
        self.head_width = sizes.head_width
        self.param_gen = nn.Linear(sizes.width, 2 * sizes.head_width**2)
        self.norm = RMSNorm(sizes.head_width, dim=-1, eps=HEAD_NORM_EPS)

    def forward(self, features: Tensor, positions: Tensor) -> Tensor:
        """Features (N, width), positions (1, P, head_width) -> (N, P, head_width)."""
        generated = self.param_gen(features).unflatten(-1, (2, self.head_width, self.head_width))
        first, second = generated.unbind(1)
        columns = torch.linalg.vector_norm(first.float(), dim=-2, keepdim=True)
        first = (first / columns.clamp_min(COLUMN_NORM_FLOOR)).to(features.dtype)
        return silu(self.norm(positions) @ first) @ second + positions


def _decoder_blocks(sizes: Stage) -> nn.Sequential:
    return nn.Sequential(
        *(
            block
            for _ in range(sizes.decoder_pairs)
            for block in (SpatialBlock(sizes.width, sizes.decoder_kernel), GegluBlock(sizes.width))
        )
    )


class Decoder(nn.Module):
    """(B, channels, h, w) -> (B, 3, h * patch, w * patch), unclamped, painted by neural fields."""

    def __init__(self, sizes: Stage) -> None:
        super().__init__()
        self.patch = sizes.patch
        self.positions = nn.Parameter(torch.randn(1, sizes.patch**2, sizes.head_width))
        self.conv_in = Projection(sizes.channels, sizes.width, sizes.width)
        self.blocks = _decoder_blocks(sizes)
        self.nerf = nn.ModuleList([NeuralField(sizes)])
        self.last = nn.Linear(sizes.head_width, sizes.inputs)

    def forward(self, latents: Tensor) -> Tensor:
        features = self.blocks(self.conv_in(latents))  # (B, width, h, w)
        batch, _, rows, columns = features.shape
        fields = features.permute(0, 2, 3, 1).flatten(0, 2)  # (B h w, width)
        for layer in self.nerf:
            fields = layer(fields, self.positions)
        pixels = self.last(fields)  # (B h w, patch^2, 3)
        pixels = pixels.view(batch, rows, columns, self.patch, self.patch, 3)
        return pixels.permute(0, 5, 1, 3, 2, 4).reshape(
            batch, 3, rows * self.patch, columns * self.patch
        )


class ShuffleDecoder(nn.Module):
    """(B, channels, h, w) -> (B, inputs, h * patch, w * patch): one 1x1 conv, rearranged."""

    def __init__(self, sizes: Stage) -> None:
        super().__init__()
        self.conv_in = Projection(sizes.channels, sizes.width, sizes.width)
        self.blocks = _decoder_blocks(sizes)
        self.shuffle = nn.Sequential(
            nn.Conv2d(sizes.width, sizes.inputs * sizes.patch**2, 1), nn.PixelShuffle(sizes.patch)
        )

    def forward(self, latents: Tensor) -> Tensor:
        return self.shuffle(self.blocks(self.conv_in(latents)))


class LastFirst(nn.Sequential):
    """Its modules from the last to the first: decoders undo what the encoders did in order."""

    def forward(self, latents: Tensor) -> Tensor:
        for module in reversed(self):
            latents = module(latents)
        return latents


class StupidAE(nn.Module):
    """The autoencoder: an `nn.Module` to train, export or inspect.

    `encode` and `decode` are the bare network: no padding, no clamping, no scaling of latents.
    For speed, mixed sizes and bounded memory wrap it in a `Codec`.

    Args:
        architecture: the network's sizes; the published ones by default.
    """

    def __init__(self, architecture: Architecture = F8C16) -> None:
        super().__init__()
        self.architecture = architecture
        self.scaling: tuple[float, float] | None = None  # shift and scale, where recorded
        stages = architecture.stages
        self.encoder = nn.Sequential(*map(Encoder, stages))
        self.decoder = LastFirst(
            *(Decoder(s) if s.head == "neural_field" else ShuffleDecoder(s) for s in stages)
        )

    @classmethod
    def from_checkpoint(cls, name: str | os.PathLike[str]) -> StupidAE:
        """Does what `stae_cli.load_model` does, under the name that many expect."""
        from stae_cli.checkpoints.checkpoint import load_model  # it imports this module

        return load_model(name)

    def latent_scaling(self) -> tuple[float, float]:
        """Shift and scale with which latents have mean 0 and variance 1: (z - shift) * scale.

        Raises:
            CheckpointError: the checkpoint that the weights came from does not record them.
        """
        if self.scaling is None:
            raise CheckpointError(
                "these weights come without the statistics of their latents",
                "use a checkpoint that `stae train` made, or take them from latents of your own",
            )
        return self.scaling

    def encode(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [-1, 1], sides multiples of 8 -> (B, 16, H/8, W/8).

        Factor and channels are those of the architecture: `downsample` and `channels`.
        """
        return self.encoder(image)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 16, h, w) -> (B, 3, 8h, 8w), about [-1, 1], unclamped."""
        return self.decoder(latents)

    def forward(self, image: Tensor) -> Tensor:
        """The reconstruction of `image`, unclamped."""
        return self.decode(self.encode(image))


@contextmanager
def seeded(seed: int = SEED) -> Iterator[None]:
    """Draws weights on the CPU from `seed`; the caller's generator goes on as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield

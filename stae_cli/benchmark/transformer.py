"""A plain transformer of the sizes that papers name, as the network whose latents are encoded.

What it computes stands for what a text-to-image transformer computes per token; conditioning is
left out, so that a real one's step takes somewhat longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from stae_cli.errors import UsageError


@dataclass(frozen=True)
class TransformerSize:
    """The width of its tokens, its blocks, and the heads of each."""

    width: int
    depth: int
    heads: int

    @property
    def parameters(self) -> int:
        """Weights of all blocks: 4 width^2 for attention and 8 width^2 for the MLP of each."""
        return 12 * self.width**2 * self.depth


# ViT's sizes (arXiv 2010.11929).
SIZES = {
    "small": TransformerSize(384, 12, 6),
    "base": TransformerSize(768, 12, 12),
    "large": TransformerSize(1024, 24, 16),
    "huge": TransformerSize(1280, 32, 16),
}


def check_transformers(names: Sequence[str]) -> None:
    """Checks that every name is a known size.

    Raises:
        UsageError: one is not.
    """
    for name in names:
        if name not in SIZES:
            raise UsageError(f"unknown transformer `{name}`", f"known are: {', '.join(SIZES)}")


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on tokens (B, T, width)."""

    def __init__(self, size: TransformerSize) -> None:
        super().__init__()
        width = size.width
        self.heads = size.heads
        self.norm = nn.RMSNorm(width, elementwise_affine=False)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.queries_keys_values(self.norm(x)).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)  # (B, heads, T, width / heads) each
        mixed = scaled_dot_product_attention(queries, keys, values)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(self.norm(x))))


class Transformer(nn.Module):
    """Tokens (B, T, channels) to tokens of the same shape."""

    def __init__(self, size: TransformerSize, channels: int) -> None:
        super().__init__()
        self.embed = nn.Linear(channels, size.width)
        self.blocks = nn.Sequential(*(Block(size) for _ in range(size.depth)))
        self.norm = nn.RMSNorm(size.width, elementwise_affine=False)
        self.out = nn.Linear(size.width, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.blocks(self.embed(x))))

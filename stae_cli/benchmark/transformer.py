"""A plain transformer of the usual sizes, and one training step of it on packed latents.

It computes per token what a text-to-image transformer does, but without conditioning, so that the
step of a real one takes somewhat longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, mse_loss, scaled_dot_product_attention

from stae_cli.codec.tensors import PackedLatents
from stae_cli.errors import UsageError
from stae_cli.network.stupid_ae import SEED, seeded

LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class TransformerSize:
    """The width of tokens, the number of blocks, and the heads of each."""

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


class Step:
    """Forward, backward and AdamW's step; the loss is that of flow matching at one time.

    Args:
        transformer: a name from SIZES.
        device: where it runs.
        dtype: what it computes in, by autocast; its weights are float32.
        channels: of the latents.
        merge: positions on a side that become one token.
    """

    def __init__(
        self,
        transformer: str,
        *,
        device: torch.device,
        dtype: torch.dtype,
        channels: int,
        merge: int,
    ) -> None:
        with seeded():
            network = Transformer(SIZES[transformer], channels * merge**2)
        self.network = network.to(device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), LEARNING_RATE)
        self._noise = torch.Generator(device).manual_seed(SEED)
        self._device, self._dtype, self._merge = device, dtype, merge

    @torch.enable_grad()
    def __call__(self, latents: PackedLatents) -> Tensor:
        """Trains on pictures of one size; returns the loss without waiting for it."""
        tokens = tokens_of(latents, self._merge).float()
        noise = torch.empty_like(tokens).normal_(generator=self._noise)
        half = self._dtype != torch.float32
        with torch.autocast(self._device.type, self._dtype, enabled=half):
            velocity = self.network((tokens + noise) / 2)
        loss = mse_loss(velocity.float(), noise - tokens)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def tokens_of(latents: PackedLatents, merge: int) -> Tensor:
    """Latents of one size -> (B, T, C * merge^2): squares of `merge` positions become one token."""
    height, width = latents.sizes[0]
    grid = (len(latents.sizes), height // merge, merge, width // merge, merge, -1)
    return latents.tokens.view(grid).transpose(2, 3).flatten(3).flatten(1, 2)

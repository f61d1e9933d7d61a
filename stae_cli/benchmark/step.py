"""One training step of a transformer on packed latents of one size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from stae_cli.benchmark.transformer import SIZES, Transformer
from stae_cli.codec.packed import PackedLatents
from stae_cli.network.stupid_ae import SEED, seeded

LEARNING_RATE = 1e-4


class Step:
    """Forward, backward and AdamW's step; the loss is that of flow matching at one time.

    Args:
        transformer: a name from `transformer.SIZES`.
        device: where it runs.
        dtype: what it computes in, by autocast where that is not float32, its own weights' dtype.
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
        """Trains on pictures of one size; returns the loss, which nothing waits for."""
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

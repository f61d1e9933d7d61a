"""StupidAE as an autoencoder of diffusers.

`stae weights convert --to diffusers` writes this file beside the weights, with the layers in place
of their import. Nothing in the package imports it: only using what was written needs diffusers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import (
    AutoencoderMixin,
    DecoderOutput,
    IdentityDistribution,
)
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from diffusers.utils.outputs import BaseOutput
from torch import Tensor, nn

from stae_cli.network.architecture import Stage
from stae_cli.network.stupid_ae import Decoder, Encoder, LastFirst, ShuffleDecoder


@dataclass
class StupidAEEncoderOutput(BaseOutput):
    """The latents (B, C, h, w) under all the names by which pipelines ask for them."""

    latent: Tensor

    @property
    def latents(self) -> Tensor:
        """The same latents."""
        return self.latent

    @property
    def latent_dist(self) -> IdentityDistribution:
        """A distribution whose every sample is the latents: the encoder is deterministic."""
        return IdentityDistribution(self.latent)


class AutoencoderStupid(ModelMixin, AutoencoderMixin, ConfigMixin):  # type: ignore[misc]
    """An autoencoder for images (B, 3, H, W) in [-1, 1], whose sides are multiples of the patch.

    Args:
        stages: the sizes of each stage of the network, the one that takes pixels first.
        latent_channels: of the latents.
        scaling_factor: what pipelines multiply latents by, after subtracting `shift_factor`.
        shift_factor: see there.
        latents_mean: of each channel; only some pipelines use it.
        latents_std: of each channel, the deviation.
        force_upcast: pipelines need not compute in float32.
        block_out_channels: only its length counts, from which pipelines compute the patch.
        encoder_block_out_channels: as above, for pipelines of AutoencoderDC.
        sample_size: unused; pipelines may ask for it.
    """

    _supports_gradient_checkpointing = False

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        stages: list[dict[str, Any]],
        latent_channels: int = 16,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
        force_upcast: bool = False,
        block_out_channels: tuple[int, ...] = (512, 512, 512, 512),
        encoder_block_out_channels: tuple[int, ...] = (512, 512, 512, 512),
        sample_size: int = 512,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        sizes = [Stage(**stage) for stage in stages]
        self.encoder = nn.Sequential(*map(Encoder, sizes))
        self.decoder = LastFirst(
            *(Decoder(s) if s.head == "neural_field" else ShuffleDecoder(s) for s in sizes)
        )
        self.spatial_compression_ratio = 1
        for stage in sizes:
            self.spatial_compression_ratio *= stage.patch
        # Latent positions on each side that a decoded one depends on: one per 3x3 convolution.
        cells = self.spatial_compression_ratio // sizes[0].patch
        self._reach = -(-sizes[0].decoder_pairs * (sizes[0].decoder_kernel // 2) // cells)
        self.use_slicing = self.use_tiling = False
        self.tile_sample_min_height = self.tile_sample_min_width = 1024

    def enable_tiling(
        self,
        tile_sample_min_height: int | None = None,
        tile_sample_min_width: int | None = None,
        tile_sample_stride_height: int | None = None,
        tile_sample_stride_width: int | None = None,
    ) -> None:
        """Encodes and decodes large pictures in tiles, with the same result.

        Args:
            tile_sample_min_height: of a tile in pixels.
            tile_sample_min_width: of a tile in pixels.
            tile_sample_stride_height: ignored: tiles overlap by what the decoder sees.
            tile_sample_stride_width: ignored.
        """
        self.use_tiling = True
        self.tile_sample_min_height = tile_sample_min_height or self.tile_sample_min_height
        self.tile_sample_min_width = tile_sample_min_width or self.tile_sample_min_width

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode(
        self, x: Tensor, return_dict: bool = True
    ) -> StupidAEEncoderOutput | tuple[IdentityDistribution]:
        """Images (B, 3, H, W) in [-1, 1] to latents (B, C, H / patch, W / patch)."""
        latent = self._sliced(x, self._encode)
        if not return_dict:
            return (IdentityDistribution(latent),)
        return StupidAEEncoderOutput(latent=latent)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def decode(
        self, z: Tensor, return_dict: bool = True, generator: object = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Latents (B, C, h, w) to images (B, 3, h * patch, w * patch), about [-1, 1], unclamped."""
        sample = self._sliced(z, self._decode)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(
        self, sample: Tensor, sample_posterior: bool = False, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        """The reconstruction of images."""
        decoded: DecoderOutput | tuple[Tensor] = self.decode(
            self.encode(sample).latent, return_dict=return_dict
        )
        return decoded

    def _sliced(self, batch: Tensor, run: Any) -> Tensor:
        if self.use_slicing and batch.shape[0] > 1:
            return torch.cat([run(part) for part in batch.split(1)])
        found: Tensor = run(batch)
        return found

    def _encode(self, image: Tensor) -> Tensor:
        return self._tiled(image, self.encoder, 1, self.spatial_compression_ratio, 0)

    def _decode(self, latents: Tensor) -> Tensor:
        factor = self.spatial_compression_ratio
        return self._tiled(latents, self.decoder, factor, 1, self._reach)

    def _tiled(self, whole: Tensor, run: nn.Module, up: int, down: int, reach: int) -> Tensor:
        """The network on tiles that are `reach` larger on each side, with their middles joined.

        `up` or `down` is how much larger or smaller its output is.
        """
        height, width = whole.shape[-2:]
        tile_height, tile_width = (
            max(1, side // self.spatial_compression_ratio) * down
            for side in (self.tile_sample_min_height, self.tile_sample_min_width)
        )
        if not self.use_tiling or (height <= tile_height and width <= tile_width):
            found: Tensor = run(whole)
            return found
        rows = []
        for top in range(0, height, tile_height):
            row = []
            for left in range(0, width, tile_width):
                above, before = min(top, reach), min(left, reach)
                tile = whole[
                    ...,
                    top - above : top + tile_height + reach,
                    left - before : left + tile_width + reach,
                ]
                sides = min(tile_height, height - top), min(tile_width, width - left)
                down_to, right_to = ((side * up) // down for side in sides)
                above, before = above * up, before * up
                out = run(tile)[..., above : above + down_to, before : before + right_to]
                row.append(out)
            rows.append(torch.cat(row, dim=-1))
        return torch.cat(rows, dim=-2)

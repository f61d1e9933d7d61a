"""Folding for CUDA devices: layers with Triton kernels between the products, biases deferred.

Importing this module needs Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor
from torch.nn import Conv2d

from stae_cli.codec.cpu.affine import Placement
from stae_cli.codec.cpu.folding import (
    Weights,
    bias_of,
    cell_painter_weights,
    cell_weights,
    conv_weights,
    field_weights,
    kernel_of,
    pairs_of,
    pixel_weights,
    wide,
)
from stae_cli.codec.cpu.layers import (
    FieldHead,
    Head,
    Layer,
    PointTrunk,
    Project,
    ShuffleHead,
    Trunk,
)
from stae_cli.codec.cpu.parts import Parts
from stae_cli.codec.cuda import kernels
from stae_cli.codec.cuda.layers import FusedFieldHead, FusedPair, FusedTrunk, GegluStep, PointStep
from stae_cli.network.architecture import Stage
from stae_cli.network.stupid_ae import (
    Decoder,
    Encoder,
    GegluBlock,
    Projection,
    ShuffleDecoder,
    SpatialBlock,
)

WITH_TENSOR_CORES = (8, 0)  # compute capability from which Triton's products use them


@lru_cache
def has_tensor_cores(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether Triton multiplies matrices of this dtype on the device's tensor cores."""
    half = dtype in (torch.float16, torch.bfloat16)
    if device.type != "cuda" or not half:
        return False
    return torch.version.hip is not None or (
        torch.cuda.get_device_capability(device) >= WITH_TENSOR_CORES
    )


@dataclass(frozen=True)
class FusedBackend:
    """Triton kernels between the matrix products; see `inference.Backend`.

    Blocks add products without their biases to the rows. The sum of these, the deferred bias
    (width,), is known when folding: the next norm adds it, and the layer behind the last block.
    """

    place: Placement

    def parts(self, rows: int) -> Parts:
        return Parts(rows)

    def cut(self, images: Tensor, size: int) -> Tensor:
        return kernels.cut(images, size, self.place.dtype)

    def fold_encoder(self, encoder: Encoder) -> Sequence[Layer]:
        return self._encoder_layers(encoder, pixel_weights(encoder))

    def fold_cell_encoder(self, encoder: Encoder) -> Sequence[Layer]:
        return self._encoder_layers(encoder, cell_weights(encoder))

    def fold_decoder(
        self, decoder: Decoder | ShuffleDecoder, stage: Stage, *, parts: Parts
    ) -> tuple[Trunk, Head]:
        trunk, deferred = self._trunk(decoder, stage, parts)
        place = self.place
        if isinstance(decoder, ShuffleDecoder):
            shuffled = conv_weights(decoder.shuffle[0]).after(deferred)
            return trunk, ShuffleHead(place.unpacked(*shuffled))
        generator, encoded, constant = field_weights(decoder)
        kind = FusedFieldHead if self._can_paint(encoded) else FieldHead
        layer = place.unpacked(*generator.after(deferred))
        return trunk, kind(layer, place.put(encoded), place.put(constant))

    def fold_cell_decoder(
        self, decoder: ShuffleDecoder, stage: Stage, *, parts: Parts
    ) -> tuple[Trunk, Layer]:
        trunk, deferred = self._trunk(decoder, stage, parts)
        painter = cell_painter_weights(decoder, stage.patch).after(deferred)
        return trunk, self.place.unpacked(*painter)

    def _encoder_layers(self, encoder: Encoder, embed: Weights) -> Sequence[Layer]:
        layers: list[Layer] = [self.place.unpacked(*embed)]
        deferred = torch.zeros_like(embed.bias)
        for block in encoder.blocks:
            assert isinstance(block, GegluBlock)
            layers.append(self._geglu(block, deferred))
            deferred = deferred + bias_of(block.mlp.conv_down)
        return [*layers, self._project(encoder.out, deferred)]

    def _trunk(
        self, decoder: Decoder | ShuffleDecoder, stage: Stage, parts: Parts
    ) -> tuple[Trunk, Tensor]:
        """Also the deferred bias of its results."""
        project = self._project(decoder.conv_in)
        deferred = torch.zeros(stage.width, dtype=torch.float64)
        steps: list[Layer] = []
        pairs: list[FusedPair] = []
        for spatial, block in pairs_of(decoder):
            before, deferred = deferred, deferred + bias_of(spatial.mlp[2])
            geglu = self._geglu(block, deferred)
            if stage.decoder_kernel == 1:
                steps += [self._point(spatial, before), geglu]
            else:
                pairs.append(self._pair(spatial, geglu, before))
            deferred = deferred + bias_of(block.mlp.conv_down)
        trunk = FusedTrunk(project, pairs, parts) if pairs else PointTrunk([project, *steps], parts)
        return trunk, deferred

    def _pair(self, spatial: SpatialBlock, geglu: GegluStep, deferred: Tensor) -> FusedPair:
        inner = self.place.unpacked(*conv_weights(spatial.mlp[0], spatial.norm))
        kernel = kernel_of(cast(Conv2d, spatial.mlp[2]), self.place)
        return FusedPair(inner, self.place.put_wide(deferred), kernel, geglu)

    def _point(self, spatial: SpatialBlock, deferred: Tensor) -> PointStep:
        inner = self.place.unpacked(*conv_weights(spatial.mlp[0], spatial.norm))
        outer = self.place.put(conv_weights(spatial.mlp[2]).weight)
        return PointStep(inner, outer, self.place.put_wide(deferred))

    def _geglu(self, block: GegluBlock, deferred: Tensor) -> GegluStep:
        up = self.place.unpacked(*conv_weights(block.mlp.conv_up, block.norm))
        down = self.place.put(wide(block.mlp.conv_down.weight).flatten(1))
        return GegluStep(up, down, self.place.put_wide(deferred))

    def _project(self, projection: Projection, deferred: Tensor | None = None) -> Project:
        inner = conv_weights(projection.model[0])
        if deferred is not None:
            inner = inner.after(deferred)
        return Project(
            self.place.unpacked(*inner), self.place.unpacked(*conv_weights(projection.model[2]))
        )

    def _can_paint(self, encoded: Tensor) -> bool:
        """Whether tensor cores multiply the matrices of a field (P, head_width)."""
        pixels, width = encoded.shape
        place = self.place
        return has_tensor_cores(place.device, place.dtype) and kernels.can_paint(width, pixels)

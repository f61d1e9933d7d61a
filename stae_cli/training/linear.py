"""The linear start: weights with which a network is the PCA autoencoder of the photos.

For GELU, tanh-GELU and SiLU f(a) - f(-a) = a, so hidden pairs (+a, -a) carry a linear map through
an activation exactly. Units that the map does not need keep their random input weights and have
output weights of zero: the function is linear, and yet every unit can learn from the first step.

An early step of Adam moves every weight by about the learning rate, whatever the weight's size, so
a layer's output changes by the rate times the sum of its inputs' magnitudes. The many ways to write
the same function differ in that by orders of magnitude. Here each latent has one channel of the
decoder's features to itself: spread over all of them, the first component alone would move every
weight of the generator the same way, and a step at 5e-4 would increase the error a hundredfold. For
the same reason silent branches have small inputs, and the field is large before `last`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn

from stae_cli.errors import UsageError
from stae_cli.network.architecture import Architecture
from stae_cli.network.stupid_ae import (
    Decoder,
    Encoder,
    GegluBlock,
    NeuralField,
    Projection,
    ShuffleDecoder,
    SpatialBlock,
    StupidAE,
)
from stae_cli.training.photos import Crops

PATCHES = 1 << 17  # to fit on: 700 for each of the 192 values of a patch of 8x8,
SEEN = 64  # or as many pixels in cells of latents; patches of 32x32 are a quarter as many
PURPOSE = 1
ENCODED = 3.0  # size of the encoder's features; a step of the first layer then hardly moves them
QUIET = 0.3  # of the usual size: first layers of silent branches
FAINT = 0.05  # size of features that hold no latent, so that gradients reach them
COLOURS = 0.1  # size of the rows of `last`; the field before it is that much larger


@dataclass(frozen=True)
class Pca:
    """Mean (values,), directions (values, values) in columns by falling variance, deviations."""

    mean: Tensor
    directions: Tensor
    deviations: Tensor


def fit_pca(crops: Crops, *, patch: int, encoder: nn.Module | None = None) -> Pca:
    """Principal components of what the network will be trained on.

    With an encoder they are those of `patch` x `patch` cells of its latents.
    """
    images = crops.samples(PURPOSE, pixels=PATCHES * max(SEEN, patch**2 // 4))
    return pca_of(images if encoder is None else map(encoder, images), patch=patch)


@torch.no_grad()
def pca_of(batches: Iterable[Tensor], *, patch: int) -> Pca:
    """Principal components of patches as a first convolution sees them: (C, patch, patch).

    Args:
        batches: images (B, 3, H, W) in [-1, 1], or latents (B, C, H, W), sides multiples of the
            patch.
        patch: side of a patch in pixels, or of a cell in latents.
    """
    total = products = torch.zeros(())
    count = 0
    for images in batches:
        rows = to_patches(images, patch).cpu().double()
        total = total + rows.sum(0)
        products = products + rows.T @ rows
        count += len(rows)
    mean = total / count
    variances, directions = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    return Pca(mean, directions.flip(1), variances.flip(0).clamp_min(0).sqrt())


def to_patches(images: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (N, C * patch^2), a patch's values ordered by channel, row, column."""
    grid = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (B, C, h, p, w, p)
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)


def set_linear(model: StupidAE, pca: Pca) -> None:
    """Makes a fresh first stage the linear autoencoder of `pca`, in place.

    Raises:
        UsageError: the network is too narrow for that.
    """
    sizes = model.architecture
    if sizes.width < 2 * sizes.latent_channels or 3 * sizes.patch**2 < sizes.latent_channels:
        raise UsageError(
            f"{sizes.latent_channels} latent channels are too many for a linear start",
            "use fewer, or `--init random`",
        )
    with torch.no_grad():
        encoder, decoder = model.encoder[0], model.decoder[0]
        _silence(encoder, decoder)
        assert isinstance(encoder, Encoder)
        _set_encoder(encoder, sizes, pca)
        if isinstance(decoder, ShuffleDecoder):
            _set_shuffle(decoder, sizes.latent_channels, pca)
            return
        assert isinstance(decoder, Decoder)
        _set_conv_in(decoder.conv_in, sizes.latent_channels)
        _set_head(decoder, sizes, pca)


def set_second_linear(model: StupidAE, pca: Pca) -> None:
    """Makes a fresh second stage the linear autoencoder of `pca`, in place; the first one stays.

    Args:
        model: one of two stages.
        pca: of cells of the first stage's latents.

    Raises:
        UsageError: the network is too narrow for that.
    """
    second = model.architecture.second
    encoder, decoder = model.encoder[1], model.decoder[1]
    assert second is not None
    assert isinstance(encoder, Encoder)
    assert isinstance(decoder, ShuffleDecoder)
    channels = second.latent_channels
    if model.architecture.width < 2 * channels or len(pca.mean) < channels:
        raise UsageError(
            f"{channels} latent channels are too many for a linear start of the second stage",
            "use fewer, or `--init random`",
        )
    with torch.no_grad():
        _silence(encoder, decoder)
        _set_encoder(encoder, replace(model.architecture, latent_channels=channels), pca)
        _set_shuffle(decoder, channels, pca)


def _silence(*modules: nn.Module) -> None:
    """Makes every residual branch add nothing."""
    for block in chain.from_iterable(module.modules() for module in modules):
        if isinstance(block, GegluBlock):
            first, last = block.mlp.conv_up, block.mlp.conv_down
        elif isinstance(block, SpatialBlock):
            first, last = _conv(block.mlp[0]), _conv(block.mlp[2])
        else:
            continue
        _hush(first)
        _zero(last)


def _set_encoder(encoder: Encoder, sizes: Architecture, pca: Pca) -> None:
    """All directions go in, mixed and more alike in strength; the leading ones come out."""
    kept = min(sizes.width, len(pca.mean))
    mixing = _orthonormal(sizes.width, kept)  # (width, kept)
    strength = ENCODED * (pca.deviations[:kept] + 1e-3).rsqrt()  # half-way to equal variances
    into = mixing @ (pca.directions[:, :kept] * strength).T  # (width, values)
    first = _conv(encoder.initial[0])
    first.weight.copy_(into.view_as(first.weight))
    _bias_of(first).copy_(-into @ pca.mean)
    latents = sizes.latent_channels
    _set_pairs(encoder.out, (mixing[:, :latents] / strength[:latents]).T)
    last = _conv(encoder.out.model[2])
    last.weight[:, : 2 * latents, 0, 0] = _signs(latents)


def _set_conv_in(projection: Projection, latents: int) -> None:
    """Features: the first ones are the latents, the others are faint and random."""
    _set_pairs(projection, torch.eye(latents).double())
    first, last = _conv(projection.model[0]), _conv(projection.model[2])
    _hush(first)
    others = last.weight[latents:]
    others.copy_(FAINT / math.sqrt(others.shape[1]) * torch.randn(others.shape))
    last.weight[:latents, : 2 * latents, 0, 0] = _signs(latents) / QUIET


def _set_shuffle(decoder: ShuffleDecoder, latents: int, pca: Pca) -> None:
    """Features as in `_set_conv_in`, then the directions as the weights of the painting layer."""
    _set_conv_in(decoder.conv_in, latents)
    painter = _conv(decoder.shuffle[0])
    nn.init.zeros_(painter.weight)
    painter.weight[:, :latents, 0, 0] = pca.directions[:, :latents]
    _bias_of(painter).copy_(pca.mean)


def _set_pairs(projection: Projection, rows: Tensor) -> None:
    """Hidden units (+a, -a) for each row; the layer behind the activation starts at zero."""
    first, last = _conv(projection.model[0]), _conv(projection.model[2])
    pairs = torch.cat([rows, -rows])
    first.weight[: len(pairs), :, 0, 0] = pairs
    _bias_of(first)[: len(pairs)] = 0
    _zero(last)


def _set_head(decoder: Decoder, sizes: Architecture, pca: Pca) -> None:
    """The field y = P M(z) + positions, with P the spatial patterns and M linear in the latent.

    `positions` hold P and, so that every row has the same norm and the norm changes nothing,
    slack in as many columns again.
    """
    half = sizes.head_width // 2
    shape = (3, sizes.patch**2)
    kept = pca.directions[:, : sizes.latent_channels] * pca.deviations[: sizes.latent_channels]
    maps = torch.cat([pca.mean[:, None], kept], dim=1).T.unflatten(1, shape)  # (1 + C, 3, pixels)
    positions = _positions(maps.flatten(0, 1), half)
    decoder.positions.copy_(positions[None])
    patterns = positions[:, :half]
    colours = COLOURS * _orthonormal(half, 3).T  # (3, half): the rows of `last` over the patterns
    decoder.last.weight.zero_()
    decoder.last.weight[:, :half] = colours
    decoder.last.bias.zero_()
    raw = pca.directions[:, : sizes.latent_channels].T.unflatten(1, shape)
    raw = torch.cat([pca.mean.unflatten(0, shape)[None], raw])  # (1 + C, 3, pixels)
    fitted = torch.linalg.lstsq(patterns, raw.flatten(0, 1).T).solution  # (half, (1 + C) 3)
    matrices = fitted.unflatten(1, (-1, 3)).permute(1, 0, 2)  # (1 + C, half, 3)
    matrices[0] -= colours.T  # what adding `positions` contributes
    _set_field(decoder.nerf[0], matrices @ torch.linalg.pinv(decoder.last.weight.double()).T)


def _positions(maps: Tensor, half: int) -> Tensor:
    """The leading patterns of (maps, pixels), then slack: (pixels, 2 half), equal row norms."""
    patterns = torch.linalg.svd(maps, full_matrices=True).Vh[: 2 * half].T  # (pixels, 2 half)
    lead, rest = patterns[:, :half], patterns[:, half:]
    lead = lead * math.sqrt(half / float(lead.square().sum(1).max()))
    slack = 2 * half - lead.square().sum(1, keepdim=True)
    rest = rest / rest.norm(dim=1, keepdim=True).clamp_min(1e-6)
    return torch.cat([lead, rest * slack.sqrt()], dim=1)


def _set_field(field: nn.Module, matrices: Tensor) -> None:
    """First matrix [Q, -Q], second [M; -M]: silu(p) M - silu(-p) M = p M."""
    assert isinstance(field, NeuralField)
    width, half = field.head_width, field.head_width // 2
    identity = torch.zeros(width, half).double()
    identity[:half] = torch.eye(half)
    generator = field.param_gen
    generator.weight.zero_()
    generator.bias[: width**2] = torch.cat([identity, -identity], dim=1).flatten()
    second = torch.cat([matrices, -matrices], dim=1).flatten(1)  # (1 + C, width^2)
    generator.bias[width**2 :] = second[0]
    generator.weight[width**2 :, : len(second) - 1] = second[1:].T


def _hush(layer: nn.Conv2d) -> None:
    layer.weight.mul_(QUIET)
    _bias_of(layer).mul_(QUIET)


def _zero(layer: nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(_bias_of(layer))


def _signs(latents: int) -> Tensor:
    eye = torch.eye(latents).double()
    return torch.cat([eye, -eye], dim=1)


def _orthonormal(rows: int, columns: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns).double()).Q


def _conv(layer: nn.Module) -> nn.Conv2d:
    assert isinstance(layer, nn.Conv2d)
    return layer


def _bias_of(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias

"""The linear layout: a checkpoint whose encoder is stored as (out, in) matrices, same numbers.

The encoder never mixes patches, so its convolutions are linear layers on patches. Stored that way
they load into plain `nn.Linear` layers, which take images of mixed aspect ratios in one batch. The
first layer's columns keep the convolution's order (channel, row, column), the order of
`torch.nn.functional.unfold`. Only shapes differ: reading restores the original checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from stae_cli.errors import CheckpointError

KEY, LINEAR = "encoder_layout", "linear"  # the mark in the metadata
ENCODER = "encoder."


def to_linear(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every convolution of the encoder, (out, in, k, k), as a matrix (out, in * k * k)."""
    return {
        name: tensor.flatten(1) if name.startswith(ENCODER) and tensor.ndim == 4 else tensor
        for name, tensor in tensors.items()
    }


def from_linear(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_linear`, given tensors with the network's shapes as `expected`."""
    matrices = to_linear(expected)
    return {
        name: tensor.view(expected[name].shape)
        if name in matrices and tensor.shape == matrices[name].shape
        else tensor
        for name, tensor in tensors.items()
    }


def is_linear(metadata: Mapping[str, str]) -> bool:
    """Whether a file's metadata marks the linear layout.

    Raises:
        CheckpointError: it names a layout that this version does not know.
    """
    layout = metadata.get(KEY)
    if layout not in (None, LINEAR):
        raise CheckpointError(
            f"unknown {KEY} `{layout[:80]}` in a checkpoint", "it may need a newer stae"
        )
    return layout == LINEAR

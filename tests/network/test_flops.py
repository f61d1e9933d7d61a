"""Operation counts, derived once more by hand from the layers' sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stae_cli.errors import UsageError
from stae_cli.network.architecture import F8C16, Architecture
from stae_cli.network.flops import PUBLISHED, Flops, Stage, count, count_stage
from stae_cli.network.stupid_ae import StupidAE
from tests.seeded import TINY


def by_hand(sizes: Architecture, width: int, height: int) -> tuple[Flops, Flops]:
    """2 x inputs x outputs per position for every matrix product of the network."""
    positions = (width // sizes.patch) * (height // sizes.patch)
    wide, pixels, head = sizes.width, sizes.patch**2, sizes.head_width
    geglu = wide * 4 * wide + 2 * wide * wide
    spatial = wide * wide + 9 * wide * wide
    projections = sizes.latent_channels * wide + wide * wide
    encoder = 3 * pixels * wide + sizes.encoder_blocks * geglu + projections
    convolutions = projections + sizes.decoder_pairs * (spatial + geglu)
    linear = wide * 2 * head**2 + pixels * head * 3
    matmul = 2 * pixels * head * head
    return (
        Flops(convolution=2 * positions * encoder),
        Flops(2 * positions * convolutions, 2 * positions * linear, 2 * positions * matmul),
    )


@pytest.mark.parametrize("sizes", [F8C16, TINY], ids=lambda sizes: sizes.name)
@pytest.mark.parametrize(("width", "height"), [(1024, 1024), (8, 8), (40, 24)])
def test_counts_equal_those_made_by_hand(sizes: Architecture, width: int, height: int) -> None:
    cost = count(sizes, width, height)
    assert (cost.encoder.flops, cost.decoder.flops) == by_hand(sizes, width, height)


def test_the_published_network_at_1024() -> None:
    cost = count(F8C16, 1024, 1024)
    assert f"{cost.encoder.flops.total / 1e9:.2f}" == "115.16"
    assert f"{cost.decoder.flops.total / 1e9:.2f}" == "322.59"
    assert f"{cost.decoder.flops.convolution / 1e9:.2f}" == "283.74"
    assert f"{cost.decoder.flops.linear / 1e9:.2f}" == "34.56"
    assert f"{cost.decoder.flops.matmul / 1e9:.2f}" == "4.29"
    assert (cost.encoder.parameters, cost.decoder.parameters) == (3_521_552, 9_721_987)


def test_layers_are_named_as_in_the_checkpoint_and_hold_all_parameters() -> None:
    with torch.device("meta"):
        model = StupidAE()
    cost = count(F8C16, 64, 64)
    for stage in cost.stages:
        module = getattr(model, stage.name)
        assert stage.parameters == sum(parameter.numel() for parameter in module.parameters())
        for layer in stage.layers:
            own = model.get_submodule(layer.path).parameters(recurse=False)
            assert layer.parameters == sum(parameter.numel() for parameter in own)


def test_layers_sum_to_the_stage_and_none_is_counted_twice() -> None:
    decoder = count(F8C16, 64, 64).decoder
    flops = {layer.path: layer.flops for layer in decoder.layers}
    assert len(flops) == len(decoder.layers)
    assert sum(each.total for each in flops.values()) == decoder.flops.total
    assert min(min(f.convolution, f.linear, f.matmul) for f in flops.values()) == 0
    field = flops["decoder.0.nerf.0"]  # its own two matmuls, without param_gen below it
    assert field == Flops(matmul=decoder.flops.matmul)
    assert flops["decoder.0.nerf.0.param_gen"].linear == 2 * 64 * 512 * 2048


def test_the_fast_form_is_not_what_is_counted() -> None:
    """It folds layers away; speeds are given for the network's own operations."""
    assert count(F8C16, 64, 64).decoder.flops.linear > 2 * 64 * 512 * (1024 + 96)


def test_a_linear_layer_that_runs_as_a_matmul_is_still_linear() -> None:
    with torch.device("meta"):
        layer, example = nn.Linear(6, 10, bias=False), torch.empty(4, 6)
    stage = count_stage("stage", layer, example)
    assert stage.flops == Flops(linear=2 * 4 * 6 * 10)
    assert [layer.path for layer in stage.layers] == ["stage"]


def test_a_stage_without_operations_is_empty() -> None:
    stage = count_stage("stage", nn.Identity(), torch.empty(1, device="meta"))
    assert stage == Stage("stage", ())
    assert stage.flops == Flops()


@pytest.mark.parametrize(("width", "height"), [(1020, 1024), (1024, 12), (0, 8), (-8, 8)])
def test_sizes_that_the_network_cannot_take(width: int, height: int) -> None:
    with pytest.raises(UsageError, match="not a multiple of 8"):
        count(F8C16, width, height)


def test_published_figures_lie_near_and_are_explained() -> None:
    cost, published = count(F8C16, 1024, 1024), PUBLISHED[F8C16.name]
    assert cost.encoder.flops.total == pytest.approx(published.encoder_flops, rel=0.1)
    assert cost.decoder.flops.total == pytest.approx(published.decoder_flops, rel=0.02)
    unseen = published.decoder_flops + cost.decoder.flops.matmul - cost.decoder.flops.total
    assert 0 < unseen < 0.001 * cost.decoder.flops.total  # biases and activations
    assert all(each.source and each.why for each in PUBLISHED.values())


def test_the_published_encoder_fits_one_layer_and_sixteen_channels_more() -> None:
    published, positions = PUBLISHED[F8C16.name], (1024 // 8) ** 2
    cost = count(F8C16, 1024, 1024)
    extra = 2 * positions * (512 * 512 + 512 * 16)
    assert cost.encoder.flops.total + extra == pytest.approx(published.encoder_flops, rel=0.002)
    parameters = cost.encoder.parameters + 512 * 512 + 512 + 512 * 16 + 16
    assert parameters == 3_792_416
    assert parameters == pytest.approx(published.encoder_parameters, rel=0.01)

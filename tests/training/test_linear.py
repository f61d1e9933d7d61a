"""The linear start: an untrained network that is the photos' PCA autoencoder."""

import copy
import math

import pytest
import torch

from stae_cli.errors import UsageError
from stae_cli.network.architecture import F8C16, PRESETS, Architecture, SecondStage
from stae_cli.network.stupid_ae import StupidAE, seeded
from stae_cli.training.linear import fit_pca, set_linear, set_second_linear, to_patches
from stae_cli.training.photos import Crops, load_photos
from tests.pictures import EXAMPLES


@pytest.fixture(scope="module")
def crops():
    photos = load_photos([EXAMPLES], crop=64, memory=1 << 30)
    return Crops(photos, crop=64, batch=64, seed=0, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def pca(crops):
    return fit_pca(crops, patch=8)


def started(architecture, pca):
    with seeded(0):
        model = StupidAE(architecture)
        set_linear(model, pca)
    return model


def linear_error(pca, images, channels):
    """What the best linear autoencoder leaves of these patches."""
    centred = to_patches(images, 8).double() - pca.mean
    kept = pca.directions[:, :channels]
    return float((centred - centred @ kept @ kept.T).square().mean())


def decibels(mse):
    return 10 * math.log10(4 / mse)


@torch.no_grad()
def test_untrained_network_is_the_linear_autoencoder(crops, pca):
    images = crops.batch(3)
    error = float((started(F8C16, pca)(images) - images).square().mean())
    expected = linear_error(pca, images, 16)
    assert abs(decibels(error) - decibels(expected)) < 0.02


@torch.no_grad()
def test_latents_are_the_leading_components(crops, pca):
    images = crops.batch(3)
    latents = started(F8C16, pca).encode(images)
    expected = (to_patches(images, 8).double() - pca.mean) @ pca.directions[:, :16]
    rows = latents.permute(0, 2, 3, 1).flatten(0, 2)
    assert (rows - expected).abs().max() < 1e-3


def test_every_layer_can_learn_from_the_first_steps(crops, pca):
    """Silenced branches wake in the first step; then gradients reach every tensor."""
    model = started(F8C16, pca)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    images = crops.batch(0)[:8]
    for _ in range(2):
        optimizer.zero_grad()
        (model(images) - images).square().mean().backward()
        optimizer.step()
    idle = [name for name, p in model.named_parameters() if not p.grad.abs().max() > 0]
    assert idle == []


def test_a_network_too_narrow_for_its_latents_is_refused(pca):
    with pytest.raises(UsageError, match="too many"):
        set_linear(StupidAE(Architecture("narrow", width=16, head_width=8)), pca)


def test_no_layer_leaps_in_an_early_step(crops, pca):
    """Adam's first steps move every weight by the rate: on its own, each layer's does no harm."""
    model, images, others = started(F8C16, pca), crops.batch(0)[:4], crops.batch(1)[:4]
    (model(images) - images).square().mean().backward()
    harm = {}
    with torch.no_grad():
        before = (model(others) - others).square().mean()
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and weight.grad.any():
                kept = weight.clone()
                weight -= 5e-4 * weight.grad.sign()
                harm[name] = float((model(others) - others).square().mean() / before)
                weight.copy_(kept)
    assert len(harm) > 10
    assert {name: ratio for name, ratio in harm.items() if ratio > 2} == {}


@torch.no_grad()
@pytest.mark.parametrize("name", ["f8c16-1x1", "f8c16-shuffle"])
def test_other_decoders_start_there_too(crops, pca, name):
    images = crops.batch(3)
    error = float((started(PRESETS[name], pca)(images) - images).square().mean())
    assert abs(decibels(error) - decibels(linear_error(pca, images, 16))) < 0.02


@torch.no_grad()
def test_a_field_with_too_few_units_starts_as_near_as_it_can(crops, pca):
    """32 units hold 16 patterns: not all that 32 components need, but more than 16 components."""
    images = crops.batch(3)
    error = float((started(PRESETS["f8c32"], pca)(images) - images).square().mean())
    assert linear_error(pca, images, 32) < error < 0.8 * linear_error(pca, images, 16)


TWO = Architecture("two", width=64, head_width=8, second=SecondStage(12))
QUIETED = [
    f"{half}.{stage}.blocks.{block}.mlp.conv_up.weight"
    for stage in (0, 1)
    for half, block in (("encoder", 0), ("decoder", 1))
]


@pytest.fixture(scope="module")
def two_stages(crops, pca):
    model = started(TWO, pca)
    cells = fit_pca(crops, patch=4, encoder=model.encoder[0])
    with seeded(1):
        set_second_linear(model, cells)
    return model, cells


@torch.no_grad()
def test_a_second_stage_starts_as_the_linear_autoencoder_of_the_firsts_latents(crops, two_stages):
    model, cells = two_stages
    latents = model.encoder[0](crops.batch(3))
    rows = to_patches(latents, 4).double() - cells.mean
    kept = cells.directions[:, :12]
    expected = float((rows - rows @ kept @ kept.T).square().mean())
    error = float((model.decoder[1](model.encoder[1](latents)) - latents).square().mean())
    assert error == pytest.approx(expected, rel=1e-3)


def test_each_stage_is_set_by_itself(pca):
    """Neither moves the other: quiet layers are made so once."""
    with seeded(0):
        model = StupidAE(TWO)
    before = copy.deepcopy(model.state_dict())
    set_linear(model, pca)
    after = model.state_dict()
    assert all(torch.equal(after[n], before[n]) == (".1." in n[:11]) for n in QUIETED)


def test_every_layer_of_two_stages_can_learn_from_the_first_steps(crops, two_stages):
    model = copy.deepcopy(two_stages[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    images = crops.batch(0)[:8]
    for _ in range(2):
        optimizer.zero_grad()
        (model(images) - images).square().mean().backward()
        optimizer.step()
    idle = [name for name, p in model.named_parameters() if not p.grad.abs().max() > 0]
    assert idle == []

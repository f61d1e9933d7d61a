"""Peers: their published sizes, their shapes, and a clear error without diffusers."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch

from stae_cli.benchmark.peers import PEERS, check_peers, count_peer, load_peer
from stae_cli.errors import StaeError, UsageError
from stae_cli.network.flops import PUBLISHED


@pytest.fixture
def _with_diffusers() -> None:
    with warnings.catch_warnings():  # what diffusers warns of as it is imported is its own
        warnings.simplefilter("ignore")
        diffusers = pytest.importorskip("diffusers", exc_type=ImportError)
        assert diffusers.AutoencoderKL
        assert diffusers.AutoencoderTiny


def test_an_unknown_peer_is_named_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown network `flux`") as raised:
        check_peers(["taesd", "flux"])
    assert all(name in raised.value.hint for name in PEERS)


def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(StaeError, match="diffusers") as raised:
        load_peer("sdxl")
    assert "pip install 'stae[peers]'" in raised.value.hint
    assert not isinstance(raised.value, UsageError)


def test_a_size_that_no_peer_takes() -> None:
    with pytest.raises(UsageError, match="not a multiple of 8"):
        count_peer("sdxl", 1020, 1024)


@pytest.mark.usefixtures("_with_diffusers")
def test_sdxl_costs_what_is_known_of_it() -> None:
    cost = count_peer("sdxl", 1024, 1024)
    assert (cost.encoder.parameters, cost.decoder.parameters) == (34_163_592, 49_490_179)
    assert f"{cost.encoder.flops.total / 1e12:.3f}" == "4.879"
    assert f"{cost.decoder.flops.total / 1e12:.3f}" == "10.470"


@pytest.mark.usefixtures("_with_diffusers")
def test_the_published_sdxl_figures_lack_the_attention() -> None:
    cost, published = count_peer("sdxl", 1024, 1024), PUBLISHED["sdxl"]
    positions = (1024 // 8) ** 2
    attention = 2 * 2 * positions * positions * 512  # queries x keys, weights x values
    assert cost.encoder.flops.matmul == attention
    assert cost.decoder.flops.matmul == attention
    seen = cost.encoder.flops.total - attention
    assert seen == pytest.approx(published.encoder_flops, rel=0.005)
    seen = cost.decoder.flops.total - attention
    assert seen == pytest.approx(published.decoder_flops, rel=0.005)


@pytest.mark.usefixtures("_with_diffusers")
def test_taesd_is_convolutions_only() -> None:
    cost = count_peer("taesd", 64, 64)
    for stage in cost.stages:
        assert stage.flops.convolution == stage.flops.total > 0
        assert 1_200_000 < stage.parameters < 1_250_000


@pytest.mark.usefixtures("_with_diffusers")
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_encodes_and_decodes_the_same_way_twice(name: str) -> None:
    image = torch.linspace(-1, 1, 3 * 16 * 24).reshape(1, 3, 16, 24)
    first, second = load_peer(name), load_peer(name)
    with torch.no_grad():
        latents = first.encode(image)
        assert latents.shape == (1, 4, 2, 3)
        assert torch.equal(latents, second.encode(image))
        assert first.decode(latents).shape == image.shape

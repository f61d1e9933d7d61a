"""Packed latents: what the codec packs is what it encodes singly, and it comes back."""

import pytest
import torch

from stae_cli import Codec, PackedLatents
from stae_cli.errors import InputError
from tests.seeded import TINY, seeded_model


@pytest.fixture(scope="module")
def codec():
    return Codec(seeded_model(TINY), device="cpu")


def drawn(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_mixed_sizes_and_kinds_pack_to_what_each_is_alone(codec):
    byte = torch.arange(24 * 40 * 3, dtype=torch.int64).remainder(256).to(torch.uint8)
    images = [drawn(3, 16, 8), byte.view(24, 40, 3), drawn(3, 8, 8, seed=1).half()]
    packed = codec.encode_packed(images)
    assert packed.sizes == ((2, 1), (3, 5), (1, 1))
    assert packed.tokens.shape == (18, 16)
    for image, latent in zip(images, packed.unpack(), strict=True):
        assert torch.equal(latent, codec.encode([image])[0])


def test_a_batch_packs_as_its_pictures_do(codec):
    images = drawn(3, 3, 16, 24)
    packed = codec.encode_packed(images)
    assert packed.sizes == ((2, 3),) * 3
    assert torch.equal(torch.stack(packed.unpack()), codec.encode(images))


def test_packed_latents_decode_as_a_list_does(codec):
    latents = [drawn(16, 2, 5), drawn(16, 4, 1, seed=1)]
    packed = PackedLatents.pack(latents)
    for one, other in zip(packed.unpack(), latents, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(codec.decode(packed), codec.decode(latents), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("sizes", [(), ((2, 2),), ((2, 3), (1, 1))])
def test_sizes_that_do_not_fit_the_tokens_are_refused(sizes):
    with pytest.raises(InputError, match="do not fit") as caught:
        PackedLatents(torch.zeros(6, 16), sizes)
    assert caught.value.hint


@pytest.mark.parametrize("shapes", [[], [(16, 2)], [(16, 2, 2), (4, 2, 2)]])
def test_latents_that_cannot_be_packed_are_refused(shapes):
    with pytest.raises(InputError, match="cannot pack"):
        PackedLatents.pack([torch.zeros(shape) for shape in shapes])


def test_packed_latents_of_another_network_are_refused(codec):
    with pytest.raises(InputError, match="latents of this network"):
        codec.decode(PackedLatents(torch.zeros(6, 4), ((2, 3),)))

"""Every network of the family: its sizes by hand, and the codec beside the reference."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stae_cli.codec.pixel_codec import PixelCodec
from stae_cli.errors import InputError, UsageError
from stae_cli.network.architecture import PRESETS, Architecture
from stae_cli.network.flops import count
from stae_cli.network.stupid_ae import StupidAE
from tests.pictures import noise
from tests.seeded import seeded_model, tiny_like

NAMES = list(PRESETS)
ROUNDING = 1e-4  # of float32 in pixels; some CPUs' products depend on how many rows they have
GEGLU = 2048 * 512 + 512 * 1024  # weights of a block: up to gate and act, down again


def dense(*sizes):
    """Weights of layers from size to size."""
    return sum(a * b for a, b in pairwise(sizes))


def encoder_weights(values, channels):
    """Cells of `values` numbers in, two GEGLU blocks, the projection out."""
    return dense(values, 512) + 2 * GEGLU + dense(512, 512, channels)


def trunk_weights(channels, kernel):
    """The projection in, two pairs of a spatial (1x1, then k x k) and a GEGLU block."""
    return dense(channels, 512, 512) + 2 * (dense(512, 512) * (1 + kernel**2) + GEGLU)


FIELD = dense(512, 2 * 32 * 32)  # what generates the field's two matrices
# name: weights of (encoder, decoder, second encoder, second decoder) that multiply activations
WEIGHTS = {
    "f8c16": (encoder_weights(192, 16), trunk_weights(16, 3) + FIELD),
    "f8c32": (encoder_weights(192, 32), trunk_weights(32, 3) + FIELD),
    "f8c16-1x1": (encoder_weights(192, 16), trunk_weights(16, 1) + FIELD),
    "f8c16-shuffle": (encoder_weights(192, 16), trunk_weights(16, 3) + dense(512, 192)),
    "f32c64": (
        encoder_weights(192, 16), trunk_weights(16, 3) + FIELD,
        encoder_weights(16 * 16, 64), trunk_weights(64, 1) + dense(512, 16 * 16),
    ),
    "f32c256": (
        encoder_weights(192, 32), trunk_weights(32, 3) + FIELD,
        encoder_weights(16 * 32, 256), trunk_weights(256, 1) + dense(512, 16 * 32),
    ),
    "f32c256-naive": (encoder_weights(3072, 256), trunk_weights(256, 3) + dense(512, 3072)),
}  # fmt: skip
# biases and norm weights: 512 in, per block norm + up 2048 + down 512, 512 and the channels out;
ENCODER_REST = 512 + 2 * (512 + 2048 + 512) + 512
# the projection 2 x 512, per pair a norm and two convs of 512, and a GEGLU block's;
TRUNK_REST = 2 * 512 + 2 * (3 * 512 + 512 + 2048 + 512)


# the field: the generator's bias, the norm, positions, and the layer 32 -> 3.
FIELD_REST = 2 * 32 * 32 + 32 + 64 * 32 + 32 * 3 + 3


REST = {
    "f8c16": (ENCODER_REST + 16, TRUNK_REST + FIELD_REST),
    "f8c32": (ENCODER_REST + 32, TRUNK_REST + FIELD_REST),
    "f8c16-1x1": (ENCODER_REST + 16, TRUNK_REST + FIELD_REST),
    "f8c16-shuffle": (ENCODER_REST + 16, TRUNK_REST + 192),
    "f32c64": (
        ENCODER_REST + 16, TRUNK_REST + FIELD_REST, ENCODER_REST + 64, TRUNK_REST + 16 * 16
    ),
    "f32c256": (
        ENCODER_REST + 32, TRUNK_REST + FIELD_REST, ENCODER_REST + 256, TRUNK_REST + 16 * 32
    ),
    "f32c256-naive": (ENCODER_REST + 256, TRUNK_REST + 3072),
}  # fmt: skip
FIELD_PER_PIXEL = 32 * 32 + 32 * 32 + 32 * 3  # two generated matrices and the layer to colours
PATCH = {name: 32 if name.endswith("naive") else 8 for name in NAMES}


def halves(figures):
    """(encoder, decoder) of what is listed as (encoder, decoder, second ones)."""
    return figures[0::2], figures[1::2]


def test_the_presets_are_the_ones_that_are_documented():
    assert set(NAMES) == set(WEIGHTS)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_equal_those_counted_by_hand(name):
    with torch.device("meta"):
        model = StupidAE(PRESETS[name])
    if name == "f8c16":
        assert sum(p.numel() for p in model.parameters()) == 13_243_539
    for half, weights, rest in zip(
        (model.encoder, model.decoder), halves(WEIGHTS[name]), halves(REST[name]), strict=True
    ):
        assert sum(p.numel() for p in half.parameters()) == sum(weights) + sum(rest)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("width", "height"), [(1024, 1024), (64, 32)])
def test_operations_equal_those_counted_by_hand(name, width, height):
    """Two per weight and position; a second stage has a position for each 32x32 pixels."""
    cost = count(PRESETS[name], width, height)
    positions = [width * height // PATCH[name] ** 2, width * height // 32**2]
    encoder, decoder = (
        sum(2 * weights * many for weights, many in zip(half, positions, strict=False))
        for half in halves(WEIGHTS[name])
    )
    if name not in ("f8c16-shuffle", "f32c256-naive"):
        decoder += 2 * width * height * FIELD_PER_PIXEL
    assert cost.encoder.flops.total == encoder
    assert cost.decoder.flops.total == decoder
    assert cost.network == name


@pytest.fixture(scope="module", params=NAMES)
def full(request):
    """A whole network with seeded weights, and its codec."""
    model = seeded_model(PRESETS[request.param])
    return model, PixelCodec(model, device="cpu")


def test_the_codec_is_the_reference_whole_packed_and_tiled(full):
    model, codec = full
    side = model.architecture.downsample
    small = PixelCodec(model, device="cpu", batch_patches=5 * model.architecture.units)
    pictures = [noise(side * w, side * h, seed=w) for w, h in ((3, 2), (1, 1), (2, 4))]
    together = codec.encode_pixels(pictures)
    for picture, latent in zip(pictures, together, strict=True):
        assert np.array_equal(codec.encode_pixels([picture])[0], latent)
        image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            encoded = model.encode(image)
            decoded = model.decode(encoded).clamp(-1, 1)
        torch.testing.assert_close(torch.from_numpy(latent), encoded[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(codec.decode(encoded), decoded, rtol=0, atol=1e-4)
        torch.testing.assert_close(small.decode(encoded), decoded, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def tiny():
    """All of the family, narrow."""
    models = {name: seeded_model(tiny_like(PRESETS[name])) for name in NAMES}
    return {name: (model, PixelCodec(model, device="cpu")) for name, model in models.items()}


@settings(max_examples=30)
@given(
    name=st.sampled_from(NAMES),
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5),
    limit=st.integers(1, 40),
)
def test_mixed_sizes_are_what_each_is_alone(tiny, name, sizes, limit):
    model, codec = tiny[name]
    side, units = model.architecture.downsample, model.architecture.units
    pictures = [noise(side * w, side * h, seed=i) for i, (w, h) in enumerate(sizes)]
    other = PixelCodec(model, device="cpu", batch_patches=limit * units)
    together = codec.encode_pixels(pictures)
    decoded = other.decode([torch.from_numpy(latent) for latent in together])
    for picture, latent, image in zip(pictures, together, decoded, strict=True):
        assert latent.shape == (
            model.architecture.channels, picture.shape[0] // side, picture.shape[1] // side
        )  # fmt: skip
        assert np.array_equal(other.encode_pixels([picture])[0], latent)
        floats = torch.from_numpy(picture).permute(2, 0, 1).float() / 127.5 - 1
        with torch.no_grad():
            encoded = model.encode(floats[None])
            expected = model.decode(torch.from_numpy(latent)[None]).clamp(-1, 1)[0]
        torch.testing.assert_close(torch.from_numpy(latent), encoded[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(codec.encode([floats])[0], encoded[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_packed_latents_are_those_of_each_picture_and_decode_alike(tiny, name):
    """Bytes and floats of mixed sizes: a token for each position, rows of 64 or 256 numbers."""
    model, codec = tiny[name]
    side, channels = model.architecture.downsample, model.architecture.channels
    levels = [torch.from_numpy(noise(side * w, side * h, seed=w)) for w, h in ((3, 2), (1, 4))]
    floats = torch.from_numpy(noise(2 * side, side)).permute(2, 0, 1).float() / 127.5 - 1
    images = [levels[0], floats, levels[1]]
    packed = codec.encode_packed(images)
    assert packed.sizes == ((2, 3), (1, 2), (4, 1))
    assert packed.tokens.shape == (12, channels)
    assert codec.tiler.empty_tokens(images).shape == packed.tokens.shape
    latents = packed.unpack()
    decoded = codec.decode(packed)
    for image, latent, picture in zip(images, latents, decoded, strict=True):
        assert torch.equal(latent, codec.encode([image])[0])
        float_image = image if image.is_floating_point() else image.permute(2, 0, 1) / 127.5 - 1
        with torch.no_grad():
            torch.testing.assert_close(
                latent, model.encode(float_image[None])[0], rtol=0, atol=1e-4
            )
            expected = model.decode(latent[None])[0].clamp(-1, 1)
        torch.testing.assert_close(picture, expected, rtol=0, atol=1e-4)
    for empty, picture in zip(codec.tiler.empty_images(latents), decoded, strict=True):
        assert empty.shape == picture.shape


@pytest.mark.parametrize("name", ["f32c64", "f32c256-naive"])
def test_a_compiled_function_packs_and_decodes_them_too(tiny, name):
    """What torch is told of the results' shapes is what comes."""
    _, codec = tiny[name]

    def there_and_back(images):
        packed = codec.encode_packed(images)
        return packed.tokens, codec.decode(packed)

    torch.compiler.reset()
    images = [torch.from_numpy(noise(64, 96)), torch.from_numpy(noise(32, 64, seed=1))]
    tokens, decoded = torch.compile(there_and_back, backend="aot_eager", fullgraph=True)(images)
    expected_tokens, expected = there_and_back(images)
    assert torch.equal(tokens, expected_tokens)
    for one, other in zip(decoded, expected, strict=True):
        assert torch.equal(one, other)


@settings(max_examples=15)
@given(
    name=st.sampled_from(NAMES),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    limit=st.integers(9, 200),
)
def test_tiles_leave_no_seams(tiny, name, height, width, limit):
    model, codec = tiny[name]
    architecture = model.architecture
    generator = torch.Generator().manual_seed(limit)
    latents = torch.randn(1, architecture.channels, height, width, generator=generator)
    tiled = PixelCodec(model, device="cpu", batch_patches=limit * architecture.units)
    torch.testing.assert_close(tiled.decode(latents), codec.decode(latents), rtol=0, atol=ROUNDING)


def reach(model, rows=9):
    """How far from its own position a latent changes pixels, in positions."""
    architecture = model.architecture
    latents = torch.zeros(1, architecture.channels, rows, rows)
    middle, changed = rows // 2, latents.clone()
    changed[0, :, middle, middle] = 1
    with torch.no_grad():
        difference = (model.decode(changed) - model.decode(latents))[0].abs().sum(0)
    rows_changed = difference.sum(1).nonzero().flatten() // architecture.downsample
    return int((rows_changed - middle).abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_the_halo_is_the_networks_field_of_view(tiny, name):
    model, codec = tiny[name]
    assert reach(model) == model.architecture.halo
    assert codec.tiler.form.halo >= model.architecture.halo
    assert model.architecture.halo == {"f8c16-1x1": 0, "f32c64": 1, "f32c256": 1}.get(name, 2)


def test_a_side_between_two_positions_is_refused(tiny):
    _, codec = tiny["f32c64"]
    with pytest.raises(InputError, match="not a multiple of 32"):
        codec.encode(torch.zeros(1, 3, 32, 40))
    with pytest.raises(InputError, match=r"\(B, 64, h, w\)"):
        codec.decode(torch.zeros(1, 16, 2, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_stays_within_rounding(tiny, name, dtype):
    model, codec = tiny[name]
    half = PixelCodec(model, device="cpu", dtype=dtype)
    picture = torch.from_numpy(noise(96, 64))[None]
    exact, latents = codec.encode(picture), half.encode(picture)
    assert latents.dtype == dtype
    assert (latents.float() - exact).square().mean().sqrt() < 4 * torch.finfo(dtype).eps
    image = half.decode(latents).float()
    error = (image - codec.decode(latents.float())).square().mean().sqrt()
    assert error < 8 * torch.finfo(dtype).eps


def test_impossible_decoders_are_refused():
    for sizes in ({"decoder_kernel": 2}, {"head": "magic"}):
        with pytest.raises(UsageError, match="impossible decoder"):
            Architecture("x", **sizes)

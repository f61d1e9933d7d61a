"""The codec's numpy border: the same bytes in any company, no seams, what overflows redone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stae_cli.codec.pixel_codec import PixelCodec
from stae_cli.images.buffers import Buffers
from tests.pictures import noise
from tests.seeded import TINY, seeded_model

ROUNDING = 1e-4  # of float32 in pixels; some CPUs' products depend on how many rows they have


@pytest.fixture(scope="module")
def model():
    return seeded_model(TINY)


@pytest.fixture(scope="module")
def codec(model):
    return PixelCodec(model, device="cpu")


@settings(max_examples=25)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=9),
    limit=st.integers(1, 60),
)
def test_a_latent_has_the_same_bytes_in_any_company(model, codec, sizes, limit):
    pictures = [noise(8 * w, 8 * h, seed=i) for i, (w, h) in enumerate(sizes)]
    other = PixelCodec(model, device="cpu", batch_patches=limit)
    together = codec.encode_pixels(pictures)
    for picture, latent in zip(pictures, together, strict=True):
        assert np.array_equal(codec.encode_pixels([picture])[0], latent)
        assert np.array_equal(other.encode_pixels([picture])[0], latent)


@settings(max_examples=10)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    batch=st.integers(1, 2),
    limit=st.integers(150, 900),
)
def test_tiles_leave_no_seams(model, codec, height, width, batch, limit):
    latents = torch.randn(batch, 16, height, width, generator=torch.Generator().manual_seed(limit))
    tiled = PixelCodec(model, device="cpu", batch_patches=limit)
    torch.testing.assert_close(tiled.decode(latents), codec.decode(latents), rtol=0, atol=ROUNDING)
    pairs = zip(
        tiled.decode_pixels(list(latents.numpy())),
        codec.decode_pixels(list(latents.numpy())),
        strict=True,
    )
    for one, other in pairs:
        assert one.shape == (8 * height, 8 * width, 3)
        assert np.abs(one.astype(int) - other).max() <= 1


def test_a_seam_is_more_than_rounding(model, codec, monkeypatch):
    latents = torch.randn(1, 16, 30, 30, generator=torch.Generator().manual_seed(0))
    tiled = PixelCodec(model, device="cpu", batch_patches=400)
    monkeypatch.setattr(tiled.tiler.form, "halo", 0)
    assert (tiled.decode(latents) - codec.decode(latents)).abs().max() > 100 * ROUNDING


def test_the_published_size_packs_and_tiles_alike():
    full = seeded_model()
    codec, small = (
        PixelCodec(full, device="cpu"),
        PixelCodec(full, device="cpu", batch_patches=20 * 20),
    )
    latents = torch.randn(1, 16, 31, 30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(small.decode(latents), codec.decode(latents), rtol=0, atol=1e-4)
    pictures = [noise(8 * side, 8 * (40 - side), seed=side) for side in (1, 30, 17)]
    for picture, latent in zip(pictures, small.encode_pixels(pictures), strict=True):
        assert np.array_equal(codec.encode_pixels([picture])[0], latent)


def test_pixels_are_rounded_to_nearest(codec):
    latents = torch.randn(16, 6, 7, generator=torch.Generator().manual_seed(5))
    image = codec.decode(latents[None])[0].permute(1, 2, 0)
    expected = ((image + 1) * 127.5).round().to(torch.uint8).numpy()
    assert np.array_equal(codec.decode_pixels([latents.numpy()])[0], expected)


def test_read_only_and_strided_pictures_are_taken(codec):
    picture = noise(16, 24)
    frozen = picture.copy()
    frozen.flags.writeable = False
    turned = np.ascontiguousarray(picture[::-1])[::-1]
    for view in (frozen, turned):
        assert np.array_equal(codec.encode_pixels([view])[0], codec.encode_pixels([picture])[0])


def test_what_overflows_half_precision_is_redone_in_float32(model):
    half = PixelCodec(model, device="cpu", dtype=torch.float16)
    latents = np.random.default_rng(0).standard_normal((2, 16, 4, 4)).astype(np.float32)
    latents[1] *= 1e5
    good, large = half.decode_pixels(list(latents))
    assert good is not None
    assert np.array_equal(large, PixelCodec(model, device="cpu").decode_pixels([latents[1]])[0])
    latents[1, 0, 0, 0] = np.nan
    assert half.decode_pixels(list(latents))[1] is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pictures_on_their_way_to_cuda_are_not_mixed(model, codec):
    """Locked memory is used again while copies are under way, if anybody forgot to wait."""
    fast = PixelCodec(model, device="cuda")
    buffers = Buffers(fast.host_memory)
    sizes = [(8 * (1 + i % 7), 8 * (2 + i % 5)) for i in range(40)]
    for attempt in range(10):
        pictures, plain = [], []
        for index, (height, width) in enumerate(sizes):
            picture = buffers.take(height, width)
            assert torch.from_numpy(picture).is_pinned()
            plain.append(noise(width, height, seed=100 * attempt + index))
            picture[:] = plain[-1]
            pictures.append(picture)
        latents = fast.encode_pixels(pictures)
        exact = codec.encode_pixels(plain)
        for latent, expected in zip(latents, exact, strict=True):
            assert np.abs(latent - expected).max() < 0.02
        painted = fast.decode_pixels(latents)
        for pixels, expected in zip(painted, codec.decode_pixels(exact), strict=True):
            assert np.abs(pixels.astype(int) - expected).max() <= 16
        assert [p.shape for p in painted] == [p.shape for p in pictures]

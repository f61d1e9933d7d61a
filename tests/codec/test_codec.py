"""The codec as Python users call it: every layout, any sizes, devices, refusals."""

import doctest
import pickle
from copy import copy, deepcopy

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from stae_cli import Codec
from stae_cli.codec.cpu import affine
from stae_cli.codec.cuda import selftest
from stae_cli.codec.device import pick_device
from stae_cli.codec.pixel_codec import PixelCodec
from stae_cli.codec.tiling import LEAST_PATCHES
from stae_cli.errors import DeviceError, InputError
from tests.seeded import TINY, seeded_model

ROUNDING = 1e-4  # of float32 in pixels; some CPUs' products depend on how many rows they have
ENDS_OF_MEMORY = [
    torch.OutOfMemoryError("simulated: only a device has its own memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED\nat line 7"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
]


@pytest.fixture(scope="module")
def model():
    return seeded_model(TINY)


@pytest.fixture(scope="module")
def codec(model):
    return Codec(model, device="cpu")


@pytest.mark.parametrize("owner", ["", "normalize", "encode", "encode_packed", "decode"])
def test_the_examples_of_the_docstrings_run(owner):
    documented = getattr(Codec, owner) if owner else Codec
    (example,) = doctest.DocTestFinder(recurse=False).find(documented, globs={})
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_it_has_few_public_methods():
    methods = {name for name in dir(PixelCodec) if not name.startswith("_")}
    assert methods - {name for name in dir(Codec) if not name.startswith("_")} == {
        "encode_pixels", "decode_pixels", "begin_encoding", "begin_decoding",
        "runs_beside", "host_memory",
    }  # fmt: skip
    assert len([name for name in methods if callable(getattr(PixelCodec, name))]) <= 10


def floats(*shape, seed=0):
    """In [-1, 1]."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def levels(*shape, seed=0):
    return torch.randint(
        0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def test_a_batch_of_floats_is_the_references(model, codec):
    images = floats(3, 3, 40, 24)
    with torch.no_grad():
        expected = model.encode(images)
        decoded = model.decode(expected).clamp(-1, 1)
    latents = codec.encode(images)
    assert latents.shape == (3, 16, 5, 3)
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)
    again = codec.decode(expected)
    assert again.shape == images.shape
    torch.testing.assert_close(again, decoded, rtol=0, atol=1e-4)


def test_bytes_and_floats_of_the_same_pixels_agree(codec):
    pixels = levels(2, 16, 32, 3)
    as_floats = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(codec.encode(pixels), codec.encode(as_floats), rtol=0, atol=1e-5)


def test_lists_of_mixed_sizes_and_kinds_keep_their_order(codec):
    images = [floats(3, 16, 8), levels(24, 40, 3), floats(3, 8, 8, seed=1)]
    latents = codec.encode(images)
    assert [tuple(latent.shape) for latent in latents] == [(16, 2, 1), (16, 3, 5), (16, 1, 1)]
    for image, latent in zip(images, latents, strict=True):
        torch.testing.assert_close(codec.encode([image])[0], latent, rtol=0, atol=1e-5)
    decoded = codec.decode([latents[2], latents[0], latents[2]])
    assert [tuple(image.shape) for image in decoded] == [(3, 8, 8), (3, 16, 8), (3, 8, 8)]
    assert torch.equal(decoded[0], decoded[2])


@pytest.mark.parametrize("batch_patches", [None, 256])
@pytest.mark.parametrize(("count", "side"), [(1, 8), (21, 64), (3, 256)])
@pytest.mark.parametrize("kind", ["bytes", "floats", "channels last"])
def test_a_batch_has_the_bytes_of_its_images(model, kind, count, side, batch_patches):
    codec = Codec(model, device="cpu", batch_patches=batch_patches)
    images = levels(count, side, side + 8, 3)
    if kind != "bytes":
        images = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        images = images.contiguous() if kind == "floats" else images
    together = codec.encode(images)
    assert torch.equal(together, torch.stack(codec.encode(list(images))))
    assert torch.equal(together[-1], codec.encode([images[-1]])[0])
    packed = codec.encode_packed(images)
    assert packed.sizes == ((side // 8, side // 8 + 1),) * count
    assert torch.equal(torch.stack(packed.unpack()), together)


@pytest.mark.parametrize(
    ("batch_patches", "copies"),
    [
        (4096, [(5, 128, 128, 3)]),
        (600, [(2, 128, 128, 3), (2, 128, 128, 3), (128, 128, 3)]),
        (128, [(64, 128, 3)] * 10),
    ],
)
def test_a_batch_goes_to_the_device_in_few_copies(model, batch_patches, copies):
    codec = Codec(model, device="cpu", batch_patches=batch_patches)
    assert [tuple(part.shape) for part in codec.tiler.bands(levels(5, 128, 128, 3))] == copies


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.rand(3, 64, 64), r"\(3, 64, 64\)"),
        (torch.rand(2, 4, 64, 64), r"\(2, 4, 64, 64\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), "a ndarray"),
        ([np.zeros((8, 8, 3), np.uint8)], "a ndarray"),
        (Image.new("RGB", (8, 8)), "a Image"),
        ([floats(1, 3, 16, 16)], "shape"),
        (floats(1, 3, 12, 16), "16x12"),
        (levels(1, 16, 9, 3), "9x16"),
        (levels(1, 16, 3, 16), "shape"),
        (floats(1, 4, 16, 16), "shape"),
        (floats(1, 3, 16, 16).long(), "int64"),
        (floats(3, 16, 16), "shape"),
        (floats(0, 3, 16, 16), "nothing to encode"),
        ([], "nothing to encode"),
    ],
)
def test_what_cannot_be_encoded_is_told(codec, images, words):
    with pytest.raises(InputError, match=words) as caught:
        codec.encode(images)
    assert caught.value.hint


UNDECODABLE = [torch.zeros(shape) for shape in [(1, 4, 2, 2), (1, 16, 0, 2), (0, 16, 2, 2)]]


@pytest.mark.parametrize(
    ("latents", "words"),
    [
        *((latents, "latents of this network") for latents in UNDECODABLE),
        *(([latents], "latents of this network") for latents in UNDECODABLE),
        (torch.zeros(16, 2, 2), "latents of this network"),
        ([], "nothing to decode"),
        (np.zeros((1, 16, 2, 2), np.float32), "a ndarray"),
        (torch.zeros(1, 16, 2, 2, dtype=torch.int32), "int32"),
    ],
)
def test_what_cannot_be_decoded_is_told(codec, latents, words):
    with pytest.raises(InputError, match=words):
        codec.decode(latents)


def test_results_enter_a_training_graph_and_settings_stay(model):
    codec = Codec(model, device="cpu")
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latents = codec.encode(floats(1, 3, 16, 16))
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, codec.encode(floats(1, 3, 16, 16)), rtol=0, atol=0)
    layer = torch.nn.Conv2d(16, 2, 1)
    layer(latents).sum().backward()
    assert layer.weight.grad is not None
    assert not latents.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_its_own_dtype(model, codec, dtype):
    half = Codec(model, device="cpu", dtype=dtype)
    latents = half.encode(levels(1, 32, 16, 3))
    assert latents.dtype == dtype
    exact = codec.encode(levels(1, 32, 16, 3))
    assert (latents.float() - exact).abs().max() < 40 * torch.finfo(dtype).eps
    images = half.decode(latents)
    assert images.dtype == dtype
    assert (images.float() - codec.decode(exact)).abs().max() < 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize("error", ENDS_OF_MEMORY, ids=str)
def test_memory_that_ends_halves_the_pieces(model, monkeypatch, error):
    codec = Codec(model, device="cpu", batch_patches=4096)
    whole = codec.decode(torch.ones(1, 16, 40, 40))
    run = codec.tiler.form.decode

    def with_little_memory(latents):
        if sum(latent.shape[:2].numel() for latent in latents) > 1024:
            raise error
        return run(latents)

    monkeypatch.setattr(codec.tiler.form, "decode", with_little_memory)
    image = codec.decode(torch.ones(1, 16, 40, 40))
    torch.testing.assert_close(image, whole, rtol=0, atol=ROUNDING)
    assert codec.batch_patches == 1024
    assert codec.ran_out_of_memory


@pytest.mark.parametrize("error", ENDS_OF_MEMORY, ids=str)
def test_no_memory_at_all_is_a_clear_error(model, monkeypatch, error):
    codec = Codec(model, device="cpu")

    def never(*_given, **_named):
        raise error

    monkeypatch.setattr(codec.tiler.form, "encode", never)
    with pytest.raises(DeviceError, match="too little free memory") as caught:
        codec.encode(floats(1, 3, 16, 16))
    assert codec.batch_patches == LEAST_PATCHES
    assert ("CUDNN" in str(caught.value)) == ("CUDNN" in str(error))
    monkeypatch.setattr(selftest, "InferenceForm", never)
    with pytest.raises(DeviceError, match="too little free memory"):
        Codec(model, device="cpu")


def test_what_is_no_end_of_memory_stays_what_it_is(model, monkeypatch):
    codec = Codec(model, device="cpu")

    def fail(_images, _total):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(codec.tiler.form, "encode", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        codec.encode(floats(1, 3, 16, 16))
    assert not codec.ran_out_of_memory


@pytest.mark.parametrize("kind", [Codec, PixelCodec])
@pytest.mark.parametrize(
    "copied", [copy, deepcopy, lambda codec: pickle.loads(pickle.dumps(codec))],
    ids=["copy", "deepcopy", "pickle"],
)  # fmt: skip
def test_a_copy_is_the_same_codec(kind, copied):
    first = kind(seeded_model(TINY), device="cpu", batch_patches=777)
    second = copied(first)
    images = floats(1, 3, 16, 16)
    assert type(second) is kind
    assert second.batch_patches == 777
    assert second._number != first._number
    assert torch.equal(second.encode(images), first.encode(images))


def test_training_the_model_further_changes_nothing():
    """Neither what is encoded now, nor copies, nor what overflows and is computed in float32."""
    model = seeded_model(TINY)
    with torch.no_grad():
        model.encoder[0].out.model[2].weight *= 1e6
    codec = PixelCodec(model, device="cpu", dtype=torch.float16)
    exact = PixelCodec(model, device="cpu")
    picture = levels(16, 24, 3)
    expected = exact.encode_pixels([picture.numpy()])[0]
    assert np.abs(expected).max() > torch.finfo(torch.float16).max
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(1.1)
    assert np.array_equal(codec.encode_pixels([picture.numpy()])[0], expected)
    assert np.array_equal(deepcopy(exact).encode_pixels([picture.numpy()])[0], expected)
    assert all(weights.requires_grad for weights in model.parameters())


def test_spawned_workers_can_have_one(model):
    codec, pictures = Codec(model, device="cpu"), [floats(3, 16, 16, seed=n) for n in range(3)]
    loader = DataLoader(Encoded(codec, pictures), num_workers=1, multiprocessing_context="spawn")
    for (latent,), picture in zip(loader, pictures, strict=True):
        assert torch.equal(latent, codec.encode(picture[None])[0])


class Encoded(Dataset):
    def __init__(self, codec, pictures):
        self.codec, self.pictures = codec, pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return self.codec.encode(self.pictures[index][None])[0]


def test_colours_may_come_first_or_last(codec):
    bytes_ = levels(2, 16, 24, 3)
    floats_ = bytes_.permute(0, 3, 1, 2) / 127.5 - 1
    assert torch.equal(codec.encode(bytes_.permute(0, 3, 1, 2)), codec.encode(bytes_))
    assert torch.equal(codec.encode(floats_.permute(0, 2, 3, 1)), codec.encode(floats_))
    listed = codec.encode([bytes_[0].permute(2, 0, 1), floats_[1].permute(1, 2, 0)])
    assert torch.equal(listed[0], codec.encode(bytes_)[0])


def test_what_no_codec_can_be_is_named(model):
    for options, words in [
        ({"dtype": torch.int8}, "int8"), ({"dtype": torch.float64}, "float64"),
        ({"dtype": "float32"}, "float32"), ({"batch_patches": 0}, "at least 1"),
        ({"batch_patches": -1}, "at least 1"),
    ]:  # fmt: skip
        with pytest.raises(InputError) as caught:
            Codec(model, device="cpu", **options)
        assert words in f"{caught.value.message} {caught.value.hint}"
    with pytest.raises(DeviceError, match="nonsense"):
        Codec(model, device="nonsense")


def test_the_callers_default_device_is_none_of_its_business(model, codec):
    picture = levels(24, 16, 3)
    affine.can_pack.cache_clear()
    with torch.device("meta"):
        other = PixelCodec(model, device="cpu")
        (latent,) = other.encode_pixels([picture.numpy()])
        assert other.decode_pixels([latent])[0].shape == (24, 16, 3)
        assert deepcopy(other).encode(picture[None]).device.type == "cpu"
    assert torch.equal(torch.from_numpy(latent), codec.encode([picture])[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_default_device_leaves_cuda_its_kernels(model):
    with torch.device("cuda"):
        assert PixelCodec(model, device="cuda").unfused is None


@pytest.mark.parametrize("name", ["cuda:99", "xpu", "meta"])
def test_absent_devices_are_errors(name):
    with pytest.raises(DeviceError, match=name) as caught:
        pick_device(name)
    assert caught.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")
def test_asking_for_cuda_without_one_is_an_error():
    with pytest.raises(DeviceError, match="no CUDA device"):
        Codec(seeded_model(TINY), device="cuda")
    assert pick_device("auto").type in ("cpu", "mps")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu(model, codec):
    pixels = levels(2, 128, 96, 3)
    exact = codec.encode(pixels)
    wide = Codec(model, device="cuda", dtype=torch.float32)
    torch.testing.assert_close(wide.encode(pixels).cpu(), exact, rtol=0, atol=1e-4)
    torch.testing.assert_close(wide.decode(exact).cpu(), codec.decode(exact), rtol=0, atol=1e-4)
    half = Codec(model, device="cuda")
    assert half.dtype == torch.float16
    assert (half.encode(pixels).float().cpu() - exact).abs().max() < 0.02
    assert torch.equal(half.encode(pixels[:1]), half.encode(pixels)[:1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("triton", [False, True])
def test_on_cuda_a_latent_has_the_same_bytes_however_it_is_given(triton):
    """Alone; in a batch of several chunks; in a mixed list."""
    full = seeded_model()
    codec = Codec(full, device="cuda", triton=triton)
    assert codec.unfused is None
    pictures = levels(21, 256, 256, 3)
    expected = codec.encode(pictures.cuda())
    others = [levels(1, 64, 40, 3)[0].cuda(), levels(1, 8, 1032, 3)[0].cuda()]
    for _ in range(3):
        for index in (0, 7, 20):
            assert torch.equal(codec.encode(pictures[index : index + 1].cuda())[0], expected[index])
        listed = codec.encode([*others, *pictures.cuda()])[len(others) :]
        assert torch.equal(torch.stack(listed), expected)
    exact = Codec(full, device="cpu")
    few = exact.encode(pictures[:2])
    assert (expected[:2].float().cpu() - few).abs().max() < 0.02 * few.std()
    for _ in range(3):
        decoded, meant = codec.decode(few.half().cuda()), exact.decode(few)
        assert (decoded.float().cpu() - meant).square().mean().sqrt() < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_statistics_of_each_channel_normalise(codec, dtype, kind):
    latents = codec.encode(floats(2, 3, 16, 24)).to(dtype)
    mean, std = latents.float().mean((0, 2, 3)), latents.float().std((0, 2, 3))
    given = {"shift": kind(mean.tolist()), "scale": kind((1 / std).tolist())}
    normal = codec.normalize(latents, **given)
    assert normal.dtype == dtype
    assert normal.float().mean((0, 2, 3)).abs().max() < 2e-3
    assert (normal.float().std((0, 2, 3)) - 1).abs().max() < 2e-3
    back = codec.denormalize(normal, **given)
    assert torch.allclose(back, latents, atol=1e-5 if dtype == torch.float32 else 1e-2)
    assert torch.equal(codec.normalize(latents[0], **given), normal[0])
    tokens = latents.movedim(1, -1).reshape(-1, 16)
    assert torch.equal(codec.normalize(tokens, **given), normal.movedim(1, -1).reshape(-1, 16))
    assert torch.equal(codec.normalize(latents, scale=2.0), latents * 2)
    assert torch.equal(codec.normalize(latents, shift=0.5), latents - 0.5)


def test_statistics_of_other_channels_are_refused(codec):
    with pytest.raises(InputError, match="`scale` has 3 numbers"):
        codec.normalize(torch.zeros(1, 16, 2, 2), shift=0, scale=[1.0, 2.0, 3.0])


def test_normalising_compiles_without_a_graph_break(codec):
    mean, std = torch.linspace(-1, 1, 16), torch.linspace(1, 2, 16)
    latents = floats(2, 16, 3, 4)
    torch.compiler.reset()
    compiled = torch.compile(
        lambda z: codec.normalize(z, shift=mean, scale=1 / std), backend="eager", fullgraph=True
    )
    assert torch.equal(compiled(latents), codec.normalize(latents, shift=mean, scale=1 / std))


@pytest.mark.parametrize("side", [16, 1024])
def test_it_works_in_inference_mode(side):
    """Whose tensors other threads may read, but not write to."""
    codec = Codec(seeded_model(TINY), device="cpu")
    images = torch.rand(1, 3, side, 16) * 2 - 1
    expected = codec.decode(codec.encode(images))
    with torch.inference_mode():
        latents = codec.encode(images.clone())
        assert torch.equal(codec.decode(latents), expected)
        assert torch.equal(codec.decode([latents[0]])[0], expected[0])

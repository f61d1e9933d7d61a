"""The codec inside a caller's training step: compiled, with autocast, with gradients, unwatched."""

import copy
import shutil
from contextlib import nullcontext

import pytest
import torch

from stae_cli import Codec
from stae_cli.codec import codec as room
from stae_cli.codec import compile_ops as operators
from stae_cli.codec import inference, tiling
from stae_cli.errors import InputError
from stae_cli.network.architecture import PRESETS
from tests.seeded import TINY, seeded_model, tiny_like

OTHERS = [tiny_like(PRESETS[name]) for name in ("f8c16-1x1", "f32c64", "f32c256-naive")]
BACKENDS = ["eager", "aot_eager"]
NEEDS_COMPILER = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def codec():
    return Codec(seeded_model(TINY), device="cpu")


@pytest.fixture(autouse=True)
def _forget_graphs():
    torch.compiler.reset()


def drawn(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def mixed(side=8):
    bytes_ = torch.full((3 * side, 5 * side, 3), 9, dtype=torch.uint8)
    return [drawn(3, 2 * side, side), bytes_, drawn(3, side, side, seed=1)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor uses what torch deprecates
@pytest.mark.parametrize("backend", [*BACKENDS, pytest.param("inductor", marks=NEEDS_COMPILER)])
def test_a_compiled_training_step_needs_no_graph_break(codec, backend):
    layer = torch.nn.Conv2d(16, 2, 1)

    def loss_of(images):
        return layer(codec.encode(images)).square().mean()

    compiled = torch.compile(loss_of, backend=backend, fullgraph=True)
    rounding = 2**-7 if backend == "inductor" else 0  # of the caller's own bfloat16 layer
    for height in (16, 32, 40):  # from the second on, sizes are symbols
        images = drawn(2, 3, height, 24, seed=height)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = compiled(images.requires_grad_())
            expected = loss_of(images)
        torch.testing.assert_close(loss, expected, rtol=rounding, atol=1e-6)
        layer.zero_grad()
        loss.backward()
        assert layer.weight.grad.abs().sum() > 0
        assert images.grad is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_functions_get_the_same_bytes(codec, backend):
    def compiled(function):
        return torch.compile(function, backend=backend, fullgraph=True)

    def there_and_back(images):
        packed = codec.encode_packed(images)
        return packed, codec.decode(packed)

    images = mixed()
    latents = codec.encode(images)
    for one, other in zip(compiled(codec.encode)(images), latents, strict=True):
        assert torch.equal(one, other)
    packed, decoded = compiled(there_and_back)(images)
    assert packed.sizes == ((2, 1), (3, 5), (1, 1))
    for one, other in zip(decoded, codec.decode(latents), strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()
    batch = codec.encode(drawn(2, 3, 16, 24))
    assert torch.equal(compiled(codec.decode)(batch), codec.decode(batch))
    assert compiled(codec.decode)(batch).stride() == codec.decode(batch).stride()


def test_compilers_leave_the_codec_out_of_their_cuda_graphs():
    for operator in (operators.encode, operators.decode):
        assert torch.Tag.cudagraph_unsafe in operator._opoverload.tags


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # what inductor says of the machine
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_function_compiled_to_cuda_graphs_gets_the_same_bytes():
    codec = Codec(seeded_model(TINY), device="cuda")

    def there_and_back(images):
        return codec.decode(codec.encode(images * 0.5) * 2) + 1

    compiled = torch.compile(there_and_back, mode="reduce-overhead", fullgraph=True)
    for seed in range(6):  # it warms up, records, and replays
        images = drawn(2, 3, 64, 64, seed=seed).cuda()
        assert torch.equal(compiled(images), there_and_back(images))
        assert torch.equal(codec.encode(images[:1]), codec.encode(images)[:1])


def test_one_compiled_function_keeps_codecs_apart(codec):
    def encode(codec, images):
        return codec.encode(images) + 0

    compiled = torch.compile(encode, backend="eager", fullgraph=True)
    images = drawn(1, 3, 16, 16)
    codecs = [codec, Codec(seeded_model(TINY, seed=3), device="cpu"), copy.copy(codec)]
    for each in codecs:
        assert torch.equal(compiled(each, images), each.encode(images))
    assert len({each._number for each in codecs}) == 3


def test_what_cannot_be_encoded_is_told_from_a_compiled_function_too(codec):
    compiled = torch.compile(codec.encode, backend="eager")
    with pytest.raises(Exception, match="16x12") as caught:
        compiled(drawn(1, 3, 12, 16))
    assert isinstance(caught.value, (InputError, torch._dynamo.exc.TorchDynamoException))


def test_gradient_mode_is_the_callers(codec):
    images = drawn(1, 3, 16, 16).requires_grad_()
    with torch.enable_grad():
        latents = codec.encode(images)
        assert torch.is_grad_enabled()
    assert not latents.requires_grad
    assert not latents.is_inference()
    decoded = codec.decode(latents.clone().requires_grad_())
    assert not decoded.requires_grad
    with torch.no_grad():
        codec.encode_packed(images)
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("sizes", [TINY, *OTHERS], ids=lambda sizes: sizes.name)
def test_nothing_waits_for_the_device(monkeypatch, sizes):
    """On `meta`, whose tensors hold no values, whatever reads one or leaves the device raises."""
    monkeypatch.setattr(room, "pick_device", torch.device)
    for module in (room, tiling):
        monkeypatch.setattr(module, "plain_arithmetic", lambda _device: nullcontext())
    monkeypatch.setitem(inference.ROWS, "meta", 64)
    monkeypatch.setitem(room.BATCH_PATCHES, "meta", 64 * sizes.units)
    codec = Codec(seeded_model(sizes), device="meta", dtype=torch.float16)
    side = sizes.downsample
    images = [image.to("meta") for image in [*mixed(side), drawn(3, 13 * side, 12 * side)]]
    packed = codec.encode_packed(images)
    with pytest.raises(RuntimeError):
        packed.tokens.sum().item()
    results = [packed.tokens, *codec.decode(packed), *codec.encode(images)]
    results += [codec.decode(codec.encode(torch.stack([images[0]] * 2)))]
    assert {result.device.type for result in results} == {"meta"}


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_nothing_waits_for_a_cuda_device(dtype):
    codec = Codec(seeded_model(TINY), device="cuda", dtype=dtype)
    images = [image.cuda() for image in mixed()]
    batch = torch.stack([images[0]] * 2)
    codec.decode(codec.encode_packed(images))  # warms up: cuBLAS allocates
    codec.decode(codec.encode(batch))
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        codec.decode(codec.encode_packed(images))
        codec.decode(codec.encode(images))
        codec.decode(codec.encode(batch))
    finally:
        torch.cuda.set_sync_debug_mode("default")

"""A latent has the same bytes in any company; codecs serve threads, streams and others' graphs."""

import gc
import os
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from stae_cli import Codec
from tests.seeded import TINY, seeded_model

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def model():
    return seeded_model(TINY)


def levels(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


CAPABILITIES = {  # what torch's and oneDNN's kernels may use, less than this CPU may have
    "as it is": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "default": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_latent_has_the_same_bytes_in_any_company(capability):
    """On CPUs of every kind: torch chooses its kernels when it is loaded."""
    here = torch.backends.cpu.get_cpu_capability()
    if capability != "as it is" and here not in ("AVX2", "AVX512"):
        pytest.skip("not a CPU that can do as if it were another one")
    ran = subprocess.run(
        [sys.executable, "-m", "tests.codec.keeping_company"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
        env={**os.environ, **CAPABILITIES[capability]},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    if capability != "as it is":
        assert ran.stdout.split()[0].lower() == capability


def test_threads_do_not_mix_their_work(model):
    codec = Codec(model, device="cpu")
    batches = [levels(1, 16 + 8 * seed, 24, 3, seed=seed) for seed in range(4)]
    expected = [codec.encode(batch) for batch in batches]
    painted = [codec.decode(latents) for latents in expected]

    def run(index):
        for _ in range(20):
            latents = codec.encode(batches[index])
            assert torch.equal(latents, expected[index])
            assert torch.equal(codec.decode(latents), painted[index])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))


def test_a_codec_ends_when_nobody_refers_to_it(model):
    """Without the garbage collector: its memory is a device's."""
    codec = Codec(model, device="cpu")
    codec.decode(codec.encode(levels(1, 16, 24, 3)))
    ended = weakref.ref(codec)
    gc.disable()
    try:
        del codec
        assert ended() is None
    finally:
        gc.enable()


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("side", [64, 256, 512, 1024])
def test_small_pictures_keep_their_bytes_on_cuda(model, side):
    codec = Codec(model, device="cuda")
    pictures = levels(5, side, side, 3, seed=side)
    together = codec.encode(pictures.cuda())
    for picture, latent in zip(pictures, together, strict=True):
        assert torch.equal(codec.encode(picture[None].cuda())[0], latent)
    images = [codec.decode(latent[None]) for latent in together]
    for latent, image in zip(together, images, strict=True):
        assert torch.equal(codec.decode(latent[None]), image)
    exact = Codec(model, device="cpu").decode(together.float().cpu())
    assert (torch.cat(images).float().cpu() - exact).abs().max() < 0.1


@pytest.mark.gpu
@needs_cuda
def test_streams_do_not_mix_their_work(model):
    codec = Codec(model, device="cuda")
    batches = [torch.full((1, 64, 64, 3), value, dtype=torch.uint8).cuda() for value in (9, 200)]
    expected = [codec.encode(batch) for batch in batches]
    streams = [torch.cuda.Stream() for _ in batches]
    for _ in range(50):
        found = []
        for stream, batch in zip(streams, batches, strict=True):
            with torch.cuda.stream(stream):
                found.append(codec.encode(batch))
        torch.cuda.synchronize()
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.gpu
@needs_cuda
def test_a_callers_own_graph_takes_the_codec_in(model):
    codec = Codec(model, device="cuda")
    batch = levels(1, 64, 64, 3).cuda()
    expected = codec.encode(batch)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        latents = codec.encode(batch)
    graph.replay()
    assert torch.equal(latents, expected)

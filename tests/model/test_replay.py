"""Recording work that comes again: what is recorded, kept and given back."""

import copy
import threading

import pytest
import torch

from stae_cli import Codec
from stae_cli.model import replay
from stae_cli.model.linear_encoder import PARTS, LinearEncoder
from stae_cli.model.replay import CudaGraph, Replay
from tests.seeded import TINY, seeded_model

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Static:
    """What a CUDA graph is, on the CPU: one place for the input, one for the results."""

    made = 0

    def __init__(self, work, given):
        type(self).made += 1
        self._work, self._given = work, given.clone()
        self._results = [result.clone() for result in work(given)]

    def __call__(self, given):
        self._given.copy_(given)
        for result, fresh in zip(self._results, self._work(self._given), strict=True):
            result.copy_(fresh)
        return [result.clone() for result in self._results]


@pytest.fixture(autouse=True)
def _count_anew():
    Static.made = 0


def doubled(given):
    return [given * 2, given + 1]


def test_the_second_time_is_recorded():
    again = Replay(Static)
    for round_ in range(4):
        given = torch.full((3,), float(round_))
        assert [each.tolist() for each in again(doubled, given)] == [
            [2.0 * round_] * 3,
            [round_ + 1.0] * 3,
        ]
        assert Static.made == min(round_, 1)


def test_results_outlive_the_next_call():
    again = Replay(Static)
    results = [again(doubled, torch.full((2,), float(value)))[0] for value in range(5)]
    assert [result.tolist() for result in results] == [[2.0 * v] * 2 for v in range(5)]


def test_shapes_dtypes_and_kinds_are_apart():
    again = Replay(Static)
    for given, kind in [
        (torch.ones(2), "a"),
        (torch.ones(3), "a"),
        (torch.ones(2, dtype=torch.float64), "a"),
        (torch.ones(2), "b"),
    ]:
        again(doubled, given, kind)
    assert Static.made == 0


def test_few_are_kept_and_those_used_last(monkeypatch):
    monkeypatch.setattr(replay, "KEPT", 2)
    again = Replay(Static)
    for size in (1, 1, 2, 2, 1, 3, 3, 1):
        again(doubled, torch.ones(size))
    assert Static.made == 3
    again(doubled, torch.ones(2))  # this one had to go
    assert Static.made == 4


def test_what_was_seen_long_ago_is_forgotten(monkeypatch):
    monkeypatch.setattr(replay, "REMEMBERED", 4)
    again = Replay(Static)
    for size in [*range(1, 8), 1]:
        again(doubled, torch.ones(size))
    assert Static.made == 0
    again(doubled, torch.ones(1))
    assert Static.made == 1


def test_what_cannot_be_recorded_is_done_as_it_is():
    def fail(_work, _given):
        Static.made += 1
        raise torch.OutOfMemoryError

    again = Replay(fail)
    for _ in range(5):
        assert again(doubled, torch.ones(2))[0].tolist() == [2.0, 2.0]
    assert Static.made == 1  # not tried again and again


def test_threads_do_not_mix_their_work():
    again = Replay(Static)
    wrong = []

    def run(value):
        for _ in range(300):
            (result, _more) = again(doubled, torch.full((64,), float(value)))
            if not (result == 2 * value).all():
                wrong.append(value)

    threads = [threading.Thread(target=run, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_copy_begins_anew():
    again = Replay(Static)
    for _ in range(2):
        again(doubled, torch.ones(2))
    copied = copy.deepcopy(again)
    copied(doubled, torch.ones(2))
    assert Static.made == 1


def test_fewer_rows_are_computed_alone_only_where_no_byte_changes():
    def faithful(rows):
        return rows * 3

    def depends_on_company(rows):
        return rows * 3 if len(rows) != 64 // PARTS[1] else rows * 3.0000005

    example = torch.rand(64, 5, generator=torch.Generator().manual_seed(0))
    encoder = LinearEncoder([faithful], 64)
    assert encoder._sizes == [64]
    encoder.allow_parts(example)
    assert encoder._sizes == [4, 16, 64]
    picky = LinearEncoder([depends_on_company], 64)
    picky.allow_parts(example)
    assert picky._sizes == [4, 64]
    for form in (encoder, picky):
        for count in (1, 3, 4, 5, 16, 17, 64):
            assert torch.equal(form(example[:count]), example[:count] * 3)


@pytest.mark.gpu
@needs_cuda
def test_a_cuda_graph_computes_the_same():
    def work(given):
        return [(given @ given.T).relu(), given.sum(1)]

    given, other = torch.randn(2, 64, 64, device="cuda")
    graph = CudaGraph(work, given)
    first, second = graph(given), graph(other)
    for results, each in ((first, given), (second, other)):
        for result, expected in zip(results, work(each), strict=True):
            assert torch.equal(result, expected)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("side", [64, 256, 512, 1024])
def test_small_pictures_keep_their_bytes_when_they_come_again(side):
    model = seeded_model(TINY)
    codec = Codec(model, device="cuda")
    generator = torch.Generator().manual_seed(side)
    pictures = torch.randint(0, 256, (5, side, side, 3), generator=generator, dtype=torch.uint8)
    together = codec.encode(pictures.cuda())
    for _ in range(3):
        for picture, latent in zip(pictures, together, strict=True):
            assert torch.equal(codec.encode(picture[None].cuda())[0], latent)
    images = [codec.decode(latent[None]) for latent in together]
    for latent, image in zip(together, images, strict=True):
        assert torch.equal(codec.decode(latent[None]), image)
    exact = Codec(model, device="cpu").decode(together.float().cpu())
    assert (torch.cat(images).float().cpu() - exact).abs().max() < 0.1


@pytest.mark.gpu
@needs_cuda
def test_streams_do_not_mix_their_work():
    codec = Codec(seeded_model(TINY), device="cuda")
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
def test_a_callers_own_graph_takes_the_codec_in():
    codec = Codec(seeded_model(TINY), device="cuda")
    batch = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8).cuda()
    expected = codec.encode(batch)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        latents = codec.encode(batch)
    graph.replay()
    assert torch.equal(latents, expected)

"""Recording work that comes again: what is recorded, kept and given back."""

import copy
import gc
import pickle
import threading
import time
import weakref
from collections import Counter
from contextlib import contextmanager
from itertools import cycle, islice
from types import SimpleNamespace

import pytest
import torch

from stae_cli import Codec
from stae_cli.codec.cpu.encoder import PARTS, LinearEncoder
from stae_cli.codec.cuda import replay
from stae_cli.codec.cuda.replay import (
    ATTEMPTS,
    IDLE,
    KEPT,
    LIVE,
    OFTEN,
    PRIORITY,
    STREAMS,
    STREAMS_COME_AGAIN,
    CudaGraph,
    NoRoomError,
    Replay,
)
from tests.seeded import TINY, seeded_model

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Static:
    """What a CUDA graph is, on the CPU: one place for the input, one for the results."""

    made = 0
    open = 0

    def __init__(self, work, given):
        type(self).made += 1
        type(self).open += 1
        self._closed = False
        self._work, self._given = work, given.clone()
        self._results = [result.clone() for result in work(given)]

    def __call__(self, given):
        assert not self._closed
        self._given.copy_(given)
        for result, fresh in zip(self._results, self._work(self._given), strict=True):
            result.copy_(fresh)
        return [result.clone() for result in self._results]

    def close(self):
        assert not self._closed
        self._closed = True
        type(self).open -= 1


@pytest.fixture(autouse=True)
def _count_anew():
    Static.made = Static.open = 0


@pytest.fixture
def fresh_streams(monkeypatch):
    """As in a new process, where none are used up."""
    monkeypatch.setattr(replay, "_STREAMS", replay._Streams())
    torch._C._cuda_clearCublasWorkspaces()


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


FULL = [size for size in range(1, KEPT + 1) for _ in range(2)]  # until there is no more room


def in_turn(sizes, calls):
    return list(islice(cycle(sizes), calls))


@pytest.mark.parametrize(
    ("sizes", "made"),
    [
        pytest.param(in_turn(range(1, KEPT + 1), 100), KEPT, id="as many as there is room for"),
        pytest.param(in_turn(range(1, KEPT + 2), 180), KEPT, id="one more than that"),
        pytest.param(in_turn(range(1, 61), 1000), KEPT, id="many more"),
        pytest.param(in_turn(range(1, 101), 1000), 0, id="too many to be remembered"),
        pytest.param([*FULL, *[99] * (OFTEN - 1)], KEPT, id="a newcomer"),
        pytest.param([*FULL, *[99] * IDLE], KEPT + 1, id="a newcomer that comes all the time"),
        pytest.param([*FULL, *in_turn([98, 99], IDLE + 9)], KEPT + 2, id="two of them"),
        pytest.param([*FULL, *in_turn([*range(1, 9), 99], 3000)], KEPT, id="all others in use"),
        pytest.param([*FULL, *range(100, 2000)], KEPT, id="newcomers that do not come again"),
        pytest.param(
            [*FULL, *in_turn(range(100, 160), 60 * (OFTEN - 1))],
            KEPT,
            id="newcomers that seldom do",
        ),
    ],
)
def test_few_are_recorded_and_seldom_replaced(sizes, made):
    again = Replay(Static)
    for size in sizes:
        assert again(doubled, torch.ones(size))[0].tolist() == [2.0] * size
        assert Static.open <= KEPT
    assert Static.made == made


def test_what_was_not_used_for_longest_is_replaced(monkeypatch):
    monkeypatch.setattr(replay, "KEPT", 2)
    again = Replay(Static)
    for size in (1, 1, 2, 2, 1, *[3] * IDLE):
        again(doubled, torch.ones(size))
    assert Static.made == 3
    for size in (1, 3):  # it was 2 that had to go
        again(doubled, torch.ones(size))
    assert Static.made == 3


def test_what_had_to_go_counts_anew(monkeypatch):
    for name, value in {"KEPT": 1, "IDLE": 4, "OFTEN": 3}.items():
        monkeypatch.setattr(replay, name, value)
    again = Replay(Static)
    for size in (1, 1, *[2] * 6, *[3] * 6, *range(10, 15)):
        again(doubled, torch.ones(size))
    assert Static.made == 3
    for made in (3, 3, 4):
        again(doubled, torch.ones(2))
        assert Static.made == made


def test_there_is_an_end_to_it(monkeypatch):
    monkeypatch.setattr(replay, "RECORDED", 3)
    again = Replay(Static)
    for size in FULL:
        again(doubled, torch.ones(size))
        again.clear()
        again(doubled, torch.ones(size))
        again(doubled, torch.ones(size))
    assert Static.made == 3


def test_what_was_seen_long_ago_is_forgotten(monkeypatch):
    monkeypatch.setattr(replay, "REMEMBERED", 4)
    again = Replay(Static)
    for size in [*range(1, 8), 1]:
        again(doubled, torch.ones(size))
    assert Static.made == 0
    again(doubled, torch.ones(1))
    assert Static.made == 1


class CompilerError(Exception):
    """As Triton's, which are no RuntimeError."""


@pytest.mark.parametrize("error", [RuntimeError, CompilerError])
def test_what_cannot_be_recorded_is_done_as_it_is(error):
    def fail(_work, _given):
        Static.made += 1
        raise error

    again = Replay(fail)
    for _ in range(5):
        assert again(doubled, torch.ones(2))[0].tolist() == [2.0, 2.0]
    assert Static.made == 1  # not tried again and again


@pytest.mark.parametrize(("times", "works"), [(ATTEMPTS - 1, True), (ATTEMPTS, False)])
def test_memory_that_ends_meanwhile_is_given_back_and_recording_tried_again(times, works):
    room = True

    def record(work, given):
        if not room:
            raise torch.OutOfMemoryError
        return Static(work, given)

    again = Replay(record)
    for _ in range(2):
        again(doubled, torch.ones(1))
    room = False
    for _ in range(2 * times):  # it counts as new each time
        assert again(doubled, torch.ones(2))[0].tolist() == [2.0, 2.0]
    assert Static.open == 0
    room = True
    for _ in range(3):
        assert again(doubled, torch.ones(2))[0].tolist() == [2.0, 2.0]
    assert Static.open == works


def test_without_room_work_is_done_as_it_is_until_there_is():
    room = False

    def record(work, given):
        if not room:
            raise NoRoomError
        return Static(work, given)

    again = Replay(record)
    for _ in range(5):
        assert again(doubled, torch.ones(2))[0].tolist() == [2.0, 2.0]
    room = True
    assert again(doubled, torch.ones(2))[0].tolist() == [2.0, 2.0]
    assert Static.made == 1


def test_cleared_it_begins_anew():
    again = Replay(Static)
    for size in FULL:
        again(doubled, torch.ones(size))
    again.clear()
    assert Static.open == 0
    for count in range(3):
        assert again(doubled, torch.ones(2))[0].tolist() == [2.0, 2.0]
        assert Static.open == min(count, 1)
    again.clear()
    again.clear()
    assert Static.open == 0


def test_it_may_be_cleared_while_others_use_it():
    again = Replay(Static)
    wrong = []

    def run(value):
        for _ in range(50):
            (result, _more) = again(doubled, torch.full((64,), float(value)))
            if not (result == 2 * value).all():
                wrong.append(value)

    threads = [threading.Thread(target=run, args=(value,)) for value in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        again.clear()
    for thread in threads:
        thread.join()
    assert not wrong
    assert Static.open <= 1


def test_strides_are_apart():
    again = Replay(Static)
    for given in (torch.ones(3, 2), torch.ones(2, 3).T):
        again(doubled, given)
    assert Static.made == 0
    values = torch.arange(6.0).view(2, 3).T
    for _ in range(3):
        assert torch.equal(again(doubled, values)[0], values * 2)
    assert Static.made == 1


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
    for copied in (copy.deepcopy(again), pickle.loads(pickle.dumps(again))):
        copied(doubled, torch.ones(2))
        assert Static.made == 1


def test_it_asks_the_tensors_device_whether_it_is_captured(monkeypatch):
    current = ["cuda:0"]

    @contextmanager
    def device(chosen):
        current.append(chosen)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: current[-1] == "cuda:1")
    for name, captured in (("cuda:0", False), ("cuda:1", True)):
        assert replay._is_capturing(SimpleNamespace(is_cuda=True, device=name)) is captured
    assert not replay._is_capturing(torch.ones(2))


class Device:
    """As much of CUDA as torch's own `torch.cuda.graph` and a recording ask for, without one."""

    def __init__(self):
        self._thread = threading.local()
        self._made = Counter()  # streams, by priority
        self.under_way = {}  # pools that torch's allocator takes for those of captures: their graph
        self.most_under_way = 0
        self.released = []
        self.happened = []  # what, and on which stream
        self.tidies_up = False  # as torch does since 2.12, when a capture fails
        self.begins = True
        self.generator_captures = False  # the random numbers', which older versions of torch keep

    @property
    def current(self):
        return getattr(self._thread, "current", 0)

    def set_stream(self, stream):
        self._thread.current = stream

    def new_stream(self, _device=None, priority=0):
        self._made[priority] += 1
        return 1 + self._made[priority] % 32 - 100 * priority

    @contextmanager
    def device(self, _device):
        yield

    def stream(self, stream):
        return Within(self, stream)

    def wait(self):
        """What no work may do while it is captured."""
        for graph in self.under_way.values():
            if graph.stream == self.current:
                graph.broken = True
                raise RuntimeError("operation not permitted when stream is capturing")

    def end_allocate(self, _device, pool):
        if pool not in self.under_way:
            raise RuntimeError("not currently recording to mempool_id")
        del self.under_way[pool]

    def release(self, _device, pool):
        self.released.append(pool)


class Within:
    """As torch's `StreamContext`."""

    def __init__(self, cuda, stream):
        self._cuda, self._stream = cuda, stream

    def __enter__(self):
        self._before = self._cuda.current
        self._cuda.set_stream(self._stream)

    def __exit__(self, *_):
        self._cuda.set_stream(self._before)


class Graph:
    """As torch's `CUDAGraph`, but that it never replays anything."""

    def __init__(self, cuda):
        self._cuda = cuda
        self.broken = False
        self.stream = None

    def capture_begin(self, pool=None, **_):
        cuda = self._cuda
        self.pool, self.stream = pool, cuda.current
        cuda.under_way[pool] = self
        cuda.most_under_way = max(cuda.most_under_way, len(cuda.under_way))
        cuda.happened.append(("capture", self.stream))
        cuda.generator_captures = True
        if not cuda.begins:
            raise RuntimeError("cannot begin")

    def capture_end(self):
        assert self._cuda.current == self.stream
        if not self.broken or self._cuda.tidies_up:
            self._cuda.end_allocate(0, self.pool)
        if self.broken:
            raise RuntimeError("operation failed due to a previous error during capture")
        self._cuda.generator_captures = False

    def replay(self):
        self._cuda.happened.append(("replay", self._cuda.current))

    def reset(self):
        self._cuda.happened.append(("reset", self.stream))


@pytest.fixture
def cuda(monkeypatch):
    device = Device()
    pools = iter(range(1000))
    for name, value in {
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "current_stream": lambda _device=None: device.current,
        "set_stream": device.set_stream,
        "stream": device.stream,
        "device": device.device,
        "Stream": device.new_stream,
        "CUDAGraph": lambda: Graph(device),
        "graph_pool_handle": lambda: (0, next(pools)),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", device.end_allocate, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", device.release, raising=False)
    monkeypatch.setattr(replay, "_STREAMS", replay._Streams())
    monkeypatch.setattr(replay, "STREAMS_COME_AGAIN", True)
    monkeypatch.setattr(replay, "_ABANDONED", [])
    return device


def test_it_is_prepared_where_the_caller_is_and_captured_aside(cuda):
    cuda.set_stream(40)
    where = []

    def work(given):
        where.append(cuda.current)
        return [given]

    graph = CudaGraph(work, torch.ones(2))
    aside = where[1]
    assert where == [40, aside]
    assert aside != 40
    assert cuda.current == 40
    assert graph(torch.full((2,), 3.0))[0].tolist() == [3.0, 3.0]
    assert cuda.happened == [("capture", aside), ("replay", 40)]
    assert not cuda.under_way
    assert not cuda.released


@pytest.mark.parametrize("tidies_up", [False, True])
def test_a_capture_that_fails_leaves_nothing_behind(cuda, tidies_up):
    cuda.tidies_up = tidies_up
    cuda.set_stream(40)
    where = []

    def work(given):
        where.append(cuda.current)
        cuda.wait()
        return [given * 2]

    again = Replay(CudaGraph)
    for value in range(4):
        assert again(work, torch.full((2,), float(value)))[0].tolist() == [2.0 * value] * 2
        assert cuda.current == 40
    assert [stream for stream in where if stream != 40] == [where[2]]  # it was tried once
    assert not cuda.under_way
    assert len(cuda.released) == (0 if tidies_up else 1)  # or torch knows about it
    assert len(replay._ABANDONED) == 1
    CudaGraph(doubled, torch.ones(2))
    assert ("capture", where[2]) not in cuda.happened[2:]  # nobody uses that stream again


def test_a_capture_that_does_not_begin_leaves_nothing_behind(cuda):
    cuda.begins = False
    cuda.set_stream(40)
    with pytest.raises(RuntimeError, match="cannot begin"):
        CudaGraph(doubled, torch.ones(2))
    assert cuda.current == 40
    assert not cuda.under_way


def test_a_capture_that_fails_does_not_go_on_for_random_numbers(cuda, monkeypatch):
    monkeypatch.setattr(replay, "CAPTURES_ARE_FORGOTTEN", False)
    cuda.set_stream(40)

    def work(given):
        cuda.wait()
        return [given]

    with pytest.raises(RuntimeError, match="previous error"):
        CudaGraph(work, torch.ones(2))
    assert not cuda.generator_captures
    assert not cuda.under_way
    assert cuda.current == 40
    (failed, _, little, _), streams = zip(*cuda.happened, strict=True)
    assert failed == little == "capture"
    assert streams[0] != streams[2]


def test_an_interrupted_capture_leaves_nothing_behind(cuda):
    cuda.set_stream(40)

    def work(given):
        if cuda.current != 40:
            raise KeyboardInterrupt
        return [given]

    with pytest.raises(KeyboardInterrupt):
        CudaGraph(work, torch.ones(2))
    assert cuda.current == 40
    assert not cuda.under_way
    assert not cuda.released  # torch has ended this one properly, and releases it


def test_a_torch_without_the_private_functions_is_none_the_worse(cuda, monkeypatch):
    monkeypatch.delattr(torch._C, "_cuda_endAllocateToPool")
    monkeypatch.delattr(torch._C, "_cuda_releasePool")
    cuda.tidies_up = True

    def work(given):
        cuda.wait()
        return [given]

    with pytest.raises(RuntimeError, match="previous error"):
        CudaGraph(work, torch.ones(2))
    assert cuda.current == 0


def test_work_that_fails_before_it_is_captured_takes_up_no_stream(cuda):
    def fail(_given):
        raise torch.OutOfMemoryError

    for _ in range(2 * LIVE):
        with pytest.raises(torch.OutOfMemoryError):
            CudaGraph(fail, torch.ones(2))
    graphs = [CudaGraph(doubled, torch.ones(2)) for _ in range(LIVE)]
    assert len(streams_of(graphs)) == LIVE


def test_memory_that_ends_while_it_is_captured_takes_up_no_stream(cuda):
    def work(given):
        if cuda.current:
            raise torch.OutOfMemoryError
        return [given]

    for _ in range(2 * LIVE):
        with pytest.raises(torch.OutOfMemoryError):
            CudaGraph(work, torch.ones(2))
    assert cuda.current == 0
    assert not cuda.under_way
    assert not replay._ABANDONED
    graphs = [CudaGraph(doubled, torch.ones(2)) for _ in range(LIVE)]
    assert len(streams_of(graphs)) == LIVE


def streams_of(graphs):
    return {graph._graph.stream for graph in graphs}


def test_no_graph_shares_a_stream_with_the_caller(cuda):
    graphs = [CudaGraph(doubled, torch.ones(2)) for _ in range(LIVE)]
    theirs = {torch.cuda.Stream(None, priority) for priority in (0, -1, -5) for _ in range(32)}
    assert not streams_of(graphs) & theirs


def test_no_two_graphs_share_a_stream_and_there_is_an_end_to_them(cuda):
    graphs = []
    for _ in range(LIVE):
        graphs.append(CudaGraph(doubled, torch.ones(2)))
        for _ in range(31):  # others take streams too, so that they come round
            torch.cuda.Stream(None, PRIORITY)
    assert len(streams_of(graphs)) == LIVE
    with pytest.raises(NoRoomError):
        CudaGraph(doubled, torch.ones(2))
    for _ in range(100):  # those that end make room, and streams are used again
        graphs.pop(0).close()
        graphs.append(CudaGraph(doubled, torch.ones(2)))
        assert len(streams_of(graphs)) == LIVE


def test_where_torch_leaves_memory_behind_no_stream_is_used_again(cuda, monkeypatch):
    monkeypatch.setattr(replay, "STREAMS_COME_AGAIN", False)
    graphs = []
    for _ in range(STREAMS):
        graphs.append(CudaGraph(doubled, torch.ones(2)))
        if len(graphs) == LIVE:
            with pytest.raises(NoRoomError):
                CudaGraph(doubled, torch.ones(2))
            graphs.pop(0).close()
    graphs.clear()
    captured = [stream for what, stream in cuda.happened if what == "capture"]
    assert len(set(captured)) == len(captured) == STREAMS
    with pytest.raises(NoRoomError):
        CudaGraph(doubled, torch.ones(2))


@pytest.mark.parametrize(
    "end", [lambda graphs: graphs.pop(0).close(), lambda graphs: graphs.pop(0)]
)
def test_a_graph_ends_before_its_stream_is_used_again(cuda, end):
    graphs = [CudaGraph(doubled, torch.ones(2)) for _ in range(LIVE)]
    stream = graphs[0]._graph.stream
    end(graphs)
    cuda.happened.clear()
    graphs.append(CudaGraph(doubled, torch.ones(2)))
    graphs.append(graphs.pop(0))
    assert ("capture", stream) in cuda.happened
    assert ("reset", stream) not in cuda.happened


def test_a_closed_graph_ends_once(cuda):
    graph = CudaGraph(doubled, torch.ones(2))
    graph.close()
    graph.close()
    del graph
    gc.collect()
    assert [what for what, _ in cuda.happened] == ["capture", "reset"]


def test_replays_share_the_room_of_a_device(cuda):
    replays = [Replay(CudaGraph) for _ in range(4)]
    for each in replays:
        for size in FULL:
            each(doubled, torch.ones(size))
    assert len(cuda.happened) == LIVE + LIVE  # recorded, and done so the second time
    replays[0].clear()
    for size in FULL:
        replays[3](doubled, torch.ones(size))
    assert [what for what, _ in cuda.happened].count("capture") == LIVE + KEPT


def test_one_is_captured_at_a_time_in_a_process(cuda):
    started = threading.Barrier(4)

    def work(given):
        if cuda.current:
            time.sleep(0.02)
        return [given * 2]

    def run():
        again = Replay(CudaGraph)
        again(work, torch.ones(2))
        started.wait()
        again(work, torch.ones(2))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cuda.most_under_way == 1
    assert [what for what, _ in cuda.happened].count("capture") == 4


def test_work_within_other_work_is_recorded_with_it(cuda):
    inner, outer = Replay(CudaGraph), Replay(CudaGraph)
    for _ in range(5):
        outer(lambda given: inner(doubled, given), torch.ones(2))
    assert [what for what, _ in cuda.happened].count("capture") == 1
    inner(doubled, torch.ones(2))  # alone for the first time, but not for the first
    assert [what for what, _ in cuda.happened].count("capture") == 2


def test_threads_that_record_do_not_wait_for_each_other_in_a_circle(cuda):
    inner, outer = Replay(CudaGraph), Replay(CudaGraph)
    records = threading.Event()

    def around(given):
        if outer._lock.locked():
            records.set()
            time.sleep(0.1)  # until the other thread waits to record
        return inner(doubled, given)

    def run_outer():
        for _ in range(2):
            outer(around, torch.ones(3))

    def run_inner():
        records.wait(20)
        inner(doubled, torch.ones(3))

    threads = [threading.Thread(target=run, daemon=True) for run in (run_outer, run_inner)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert [what for what, _ in cuda.happened].count("capture") == 2


def test_a_graph_keeps_what_its_work_refers_to(cuda):
    weight = torch.ones(2)
    alive = weakref.ref(weight)
    graph = CudaGraph(lambda given, weight=weight: [given * weight], torch.ones(2))
    del weight
    gc.collect()
    assert alive() is not None
    del graph
    assert alive() is None


def test_what_is_recorded_in_inference_mode_serves_outside(cuda):
    with torch.inference_mode():
        graph = CudaGraph(doubled, torch.ones(2))
        graph(torch.ones(2))
    with torch.no_grad():
        graph(torch.ones(2))


def test_fewer_rows_are_computed_alone_only_where_no_byte_changes():
    def faithful(rows):
        return rows * 3

    def depends_on_company(rows):
        return rows * 3 if len(rows) != 64 // PARTS[2] else rows * 3.0000005

    example = torch.rand(64, 5, generator=torch.Generator().manual_seed(0))
    encoder = LinearEncoder([faithful], 64)
    assert encoder._sizes == [64]
    encoder.allow_parts(example)
    assert encoder._sizes == [4, 8, 16, 32, 64]
    picky = LinearEncoder([depends_on_company], 64)
    picky.allow_parts(example)
    assert picky._sizes == [4, 8, 32, 64]
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
def test_the_callers_streams_are_not_those_of_graphs():
    device = torch.device("cuda", torch.cuda.current_device())
    stream = replay._Streams().take(device)
    assert stream.cuda_stream not in {torch.cuda.Stream().cuda_stream for _ in range(64)}


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


@pytest.mark.gpu
@needs_cuda
def test_work_that_waits_is_done_as_it_is_on_the_callers_stream(fresh_streams):
    def work(given):
        return [given * given.sum().item()]

    again = Replay()
    ours = torch.cuda.Stream()
    with torch.cuda.stream(ours):
        for value in range(1, 5):
            given = torch.full((1000,), float(value), device="cuda")
            (result,) = again(work, given)
            assert torch.cuda.current_stream() == ours
            assert (result == 1000 * value * value).all()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # refused where a capture still counts as under way; so is this
    assert torch.rand(3, device="cuda").isfinite().all()
    given = torch.randn(64, 64, device="cuda")
    after = Replay()
    for _ in range(3):
        assert torch.equal(after(lambda given: [given @ given], given)[0], given @ given)
    assert len(after._kept) == 1


@pytest.mark.gpu
@needs_cuda
def test_graphs_outlive_the_end_of_others(fresh_streams):
    """What cuBLAS works in is another's for each, whoever empties its caches."""

    def work(given):
        return [given @ given.T @ given]

    sizes = [64 * count for count in range(1, 9)]
    inputs = [torch.randn(size, 2048, device="cuda", dtype=torch.float16) for size in sizes]
    expected = [work(given)[0] for given in inputs]
    graphs = [CudaGraph(work, given) for given in inputs]
    for _ in range(40 if STREAMS_COME_AGAIN else STREAMS - 2 * len(sizes)):
        graphs[0].close()
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        graphs = [*graphs[1:], CudaGraph(work, inputs[0])]
        inputs, expected = [*inputs[1:], inputs[0]], [*expected[1:], expected[0]]
        torch._C._cuda_clearCublasWorkspaces()  # and what it was recorded with
        torch.cuda.empty_cache()
        for graph, given, result in zip(graphs, inputs, expected, strict=True):
            assert torch.equal(graph(given)[0], result)


@pytest.mark.gpu
@needs_cuda
def test_cleared_it_gives_its_memory_back(fresh_streams):
    again = Replay()
    given = torch.ones(1 << 20, device="cuda")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for _ in range(3):
        again(lambda given: [given.repeat(32) + 1], given)
    again.clear()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + (2 << 20)

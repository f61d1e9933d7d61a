"""Replay: CUDA graphs of work that comes again, since starting kernels one by one takes time."""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor

from stae_cli.codec.memory import ran_out

Work = Callable[[Tensor], Sequence[Tensor]]

KEPT = 8  # recordings at a time, each with memory for all that its work computes
LIVE = 16  # graphs at a time on one device in this process, each on a stream of its own
# Torch has 32 streams for each of a few priorities, and hands them out in turn to whoever asks: to
# most for the usual one, to those who want the highest for that. Recorded work keeps its priority.
PRIORITY = -2
STREAMS = 32
# Before 2.12 torch did not free what cuBLAS worked in when a graph ended: the next one on its
# stream would go on there, and be left without it by whoever empties the caches.
STREAMS_COME_AGAIN = torch.__version__ >= "2.12"  # torch compares versions, not texts
# Before 2.13 one that failed might go on for the device's generator of random numbers.
CAPTURES_ARE_FORGOTTEN = torch.__version__ >= "2.13"
REMEMBERED = 64  # kinds of work that may become a recording

# To record waits for the device, and takes as long as dozens of calls. Where there is no room, one
# recording is replaced only after so many calls without it, by what has come so often, and no more
# than so many are made in all: sizes that come in turn would otherwise push each other out.
IDLE = 256
OFTEN = 8
RECORDED = 64
ATTEMPTS = 3  # to record, that ended because memory did: what else runs may leave more of it later


class NoRoomError(Exception):
    """As many graphs as may be are kept on the device."""


class Recording(Protocol):
    """Work that can be done again on another tensor of the same shape, strides and dtype."""

    def __call__(self, given: Tensor) -> list[Tensor]:
        """The results, in memory of their own."""

    def close(self) -> None:
        """Gives its memory back; it is not called again."""


class _Streams:
    """Streams to record on, which are kept for as long as the process runs.

    What cuBLAS works in belongs to a thread and a stream, the graphs recorded there go on using
    it, and torch frees it with the first of them: no two graphs that are kept share a stream, nor
    does one share it with what the caller does.
    """

    def __init__(self) -> None:
        self.recording = threading.Lock()  # CUDA graphs: one at a time in a process
        self._made: defaultdict[torch.device, list[torch.cuda.Stream]] = defaultdict(list)
        self._free: defaultdict[torch.device, deque[torch.cuda.Stream]] = defaultdict(deque)

    def take(self, device: torch.device) -> torch.cuda.Stream:
        """A stream that no graph was recorded on, or none that is kept; while `recording`.

        Older versions of torch have one for each of STREAMS graphs, and none for later ones.

        Raises:
            NoRoomError: there is none left.
        """
        made, free = self._made[device], self._free[device]
        if free and STREAMS_COME_AGAIN:
            return free.popleft()
        if len(made) - len(free) >= LIVE or len(made) >= STREAMS:
            raise NoRoomError
        stream = torch.cuda.Stream(device, PRIORITY)
        while stream in made:  # others ask too, if seldom
            stream = torch.cuda.Stream(device, PRIORITY)
        made.append(stream)
        return stream

    def give_back(self, device: torch.device, stream: torch.cuda.Stream) -> None:
        """Takes no lock: the garbage collector comes here whatever its thread holds."""
        self._free[device].append(stream)


_STREAMS = _Streams()  # the process's, as captures and torch's streams are
_ABANDONED: list[torch.cuda.CUDAGraph] = []


class _Here(threading.local):
    """What the thread is doing."""

    is_recording = False


_HERE = _Here()


class CudaGraph:
    """Work on a CUDA device, recorded once and started as a whole.

    Each has its own memory pool: torch reuses memory only between graphs of one stream, which no
    two have in common.

    Args:
        work: it must not wait for the device. It is kept, as the graph reads what it refers to:
            nothing there may put another tensor in a tensor's place.
        given: an example of its input.

    Raises:
        NoRoomError: there are too many already.
        torch.OutOfMemoryError: there is too little memory now.
        RuntimeError: the device cannot record it.
    """

    def __init__(self, work: Work, given: Tensor) -> None:
        self._work = work
        with _STREAMS.recording, torch.cuda.device(given.device):
            aside = _STREAMS.take(given.device)
            self._graph = torch.cuda.CUDAGraph()
            self._end = weakref.finalize(self, _destroy, self._graph, given.device, aside)
            self._end.atexit = False
            with torch.inference_mode(False):  # or it could be written in that mode alone
                self._given = torch.empty_like(given)
            self._given.copy_(given)
            # Libraries prepare themselves for a thread. Not on `aside`: what cuBLAS works in there
            # is to come from the graph's own memory, since others may free it anywhere else.
            work(self._given)
            self._results = self._capture(aside)

    def __call__(self, given: Tensor) -> list[Tensor]:
        self._given.copy_(given)
        self._graph.replay()
        return [result.clone() for result in self._results]

    def close(self) -> None:
        self._results = []
        self._end()

    def _capture(self, aside: torch.cuda.Stream) -> list[Tensor]:
        before = torch.cuda.current_stream()
        pool = torch.cuda.graph_pool_handle()
        # Other threads may pin memory meanwhile, which a stricter mode takes for an error.
        capture = torch.cuda.graph(
            self._graph, pool=pool, stream=aside, capture_error_mode="thread_local"
        )
        try:
            with capture:
                return list(self._work(self._given))
        except torch.OutOfMemoryError:
            raise  # torch's allocator says so to the work alone: the capture has ended well
        except BaseException:
            torch.cuda.set_stream(before)  # torch does not come to it where a capture cannot end
            self._end.detach()  # nobody knows in what state `aside` is
            _abandon(self._graph, self._given.device, pool)
            raise


def _destroy(graph: torch.cuda.CUDAGraph, device: torch.device, stream: torch.cuda.Stream) -> None:
    graph.reset()
    _STREAMS.give_back(device, stream)


def _abandon(graph: torch.cuda.CUDAGraph, device: torch.device, pool: tuple[int, int]) -> None:
    """Ends for torch's allocator a capture that failed, or it could never empty its cache again.

    Newer versions do so themselves, and refuse to end it twice. The pool is not released then:
    the newest have done that too, and a second time would break its count.
    """
    _ABANDONED.append(graph)  # an older allocator of locked memory goes on asking it
    with suppress(RuntimeError):
        graph.reset()
    with suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(device.index, pool)
        torch._C._cuda_releasePool(device.index, pool)
    if not CAPTURES_ARE_FORGOTTEN:
        with suppress(RuntimeError, NoRoomError):
            _capture_little(device)


def _capture_little(device: torch.device) -> None:
    """Takes from the device's random numbers the belief that a capture goes on: one that ends does.

    Nobody could draw any otherwise.
    """
    stream = _STREAMS.take(device)
    graph, number = torch.cuda.CUDAGraph(), torch.zeros(1, device=device)
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        number.add_(1)
    _destroy(graph, device, stream)


class Replay:
    """Does work, and records what comes again: the first time as it is, from the second recorded.

    Few kinds are recorded; where they are, those that come later are done as they are until one
    of them is out of use. Safe to use from several threads and streams: each stream has recordings
    of its own. Safe to use within other work: that is recorded as a whole.

    Args:
        record: how it is recorded.
    """

    def __init__(self, record: Callable[[Work, Tensor], Recording] = CudaGraph) -> None:
        self._record = record
        self._kept: dict[Hashable, tuple[Recording, int]] = {}  # and its last call; oldest first
        self._seen: dict[Hashable, int] = {}  # how often, of what is not kept; oldest first
        self._calls = 0
        self._recorded = 0
        self._short = 0  # how often memory has ended
        self._lock = threading.Lock()
        self._works = True

    def __call__(self, work: Work, given: Tensor, kind: Hashable = None) -> Sequence[Tensor]:
        """The results of `work(given)`.

        Args:
            work: the same for the same kind of input. A recording keeps it: where it refers to
                this replay's owner, that waits for the garbage collector when nobody wants it.
            given: its shape, strides and dtype are part of the kind. If it has gaps or overlaps,
                a recording sees it contiguous.
            kind: what else tells this work from other work.
        """
        # Before the lock: a thread that records holds others, which a holder of this may wait for.
        if not self._works or _HERE.is_recording or _is_capturing(given):
            return work(given)
        key = (kind, given.shape, given.stride(), given.dtype, given.device, stream_of(given))
        with self._lock:
            recording = self._recording(key, work, given)
            if recording is not None:
                return recording(given)
        return work(given)

    def clear(self) -> None:
        """Gives back the memory of all recordings; kinds are recorded when they come twice again.

        Not from within `work`.
        """
        with self._lock:
            self._drop_all()

    def __reduce__(self) -> tuple[type[Replay], tuple[Callable[[Work, Tensor], Recording]]]:
        """A copy begins anew: a device's graphs cannot be copied."""
        return Replay, (self._record,)

    def _recording(self, key: Hashable, work: Work, given: Tensor) -> Recording | None:
        self._calls += 1
        if key in self._kept:
            recording, _ = self._kept.pop(key)
        elif self._is_due(key):
            made = self._new_recording(work, given)
            if made is None:
                return None
            recording = made
            del self._seen[key]
        else:
            return None
        self._kept[key] = recording, self._calls
        return recording

    def _is_due(self, key: Hashable) -> bool:
        """Notes that a kind has come that is not kept, and tells whether it is to be recorded."""
        count = self._seen.pop(key, 0) + 1
        self._seen[key] = count
        if len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]
        if not self._works or self._recorded >= RECORDED:
            return False
        if len(self._kept) < KEPT:
            return count >= 2
        _, used = next(iter(self._kept.values()))
        return count >= OFTEN and self._calls - used > IDLE

    def _new_recording(self, work: Work, given: Tensor) -> Recording | None:
        if len(self._kept) >= KEPT:
            recording, _ = self._kept.pop(next(iter(self._kept)))
            recording.close()
        _HERE.is_recording = True
        try:
            recording = self._record(work, given)
        except NoRoomError:
            return None
        except Exception as error:  # noqa: BLE001 - a driver, a compiler and libraries raise here
            self._short += 1
            self._works = ran_out(error) and self._short < ATTEMPTS
            self._drop_all()
            return None
        finally:
            _HERE.is_recording = False
        self._recorded += 1
        return recording

    def _drop_all(self) -> None:
        for recording, _ in self._kept.values():
            recording.close()
        self._kept.clear()
        self._seen.clear()


def stream_of(given: Tensor) -> int:
    """The stream that work on the tensor is put on, as a number."""
    return torch.cuda.current_stream(given.device).cuda_stream if given.is_cuda else 0


def _is_capturing(given: Tensor) -> bool:
    """Whether the caller is recording a graph of its own, which this work becomes a part of."""
    if not given.is_cuda:
        return False
    with torch.cuda.device(given.device):
        return torch.cuda.is_current_stream_capturing()

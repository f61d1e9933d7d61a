"""Replay: CUDA graphs of work that comes again, since starting kernels one by one takes time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor

Work = Callable[[Tensor], Sequence[Tensor]]

KEPT = 8  # recordings, each with memory for all that its work computes
REMEMBERED = 64  # kinds of work that may become one


class Recording(Protocol):
    """Work that can be done again on another tensor of the same shape and dtype."""

    def __call__(self, given: Tensor) -> list[Tensor]:
        """The results, in memory of their own."""


class CudaGraph:
    """Work on a CUDA device, recorded once and started as a whole.

    Args:
        work: it must not wait for the device, and be done before with tensors of this shape.
        given: an example of its input.

    Raises:
        RuntimeError: the device cannot record it.
    """

    def __init__(self, work: Work, given: Tensor) -> None:
        self._given = given.clone()
        self._graph = torch.cuda.CUDAGraph()
        aside = torch.cuda.Stream(given.device)
        with torch.cuda.device(given.device):
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                work(self._given)  # libraries prepare themselves per stream
            torch.cuda.current_stream().wait_stream(aside)
            # Other threads may pin memory meanwhile, which a stricter mode takes for an error.
            with torch.cuda.graph(self._graph, stream=aside, capture_error_mode="thread_local"):
                self._results = list(work(self._given))

    def __call__(self, given: Tensor) -> list[Tensor]:
        self._given.copy_(given)
        self._graph.replay()
        return [result.clone() for result in self._results]


class Replay:
    """Does work, and records what comes again: the first time as it is, from the second recorded.

    Safe to use from several threads and streams: each stream has recordings of its own.

    Args:
        record: how it is recorded.
    """

    def __init__(self, record: Callable[[Work, Tensor], Recording] = CudaGraph) -> None:
        self._record = record
        self._recordings: OrderedDict[Hashable, Recording] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._lock = threading.Lock()
        self._works = True

    def __call__(self, work: Work, given: Tensor, kind: Hashable = None) -> Sequence[Tensor]:
        """The results of `work(given)`.

        Args:
            work: the same for the same kind of input.
            given: contiguous; its shape and dtype are part of the kind.
            kind: what else tells this work from other work.
        """
        key = (kind, given.shape, given.dtype, stream_of(given))
        with self._lock:
            recording = self._recording(key, work, given)
            if recording is not None:
                return recording(given)
        return work(given)

    def __reduce__(self) -> tuple[type[Replay], tuple[Callable[[Work, Tensor], Recording]]]:
        """A copy begins anew: a device's graphs cannot be copied."""
        return Replay, (self._record,)

    def _recording(self, key: Hashable, work: Work, given: Tensor) -> Recording | None:
        if not self._works or _is_capturing(given):
            return None
        if key in self._recordings:
            self._recordings.move_to_end(key)
            return self._recordings[key]
        if key not in self._seen:
            self._seen[key] = None
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
            return None
        try:
            self._recordings[key] = self._record(work, given)
        except RuntimeError:  # too little memory, or a library that cannot be recorded
            self._works = False
            self._recordings.clear()
            return None
        if len(self._recordings) > KEPT:
            self._recordings.popitem(last=False)
        return self._recordings[key]


def stream_of(given: Tensor) -> int:
    """The stream that work on the tensor is put on, as a number."""
    return torch.cuda.current_stream(given.device).cuda_stream if given.is_cuda else 0


def _is_capturing(given: Tensor) -> bool:
    """Whether the caller is recording a graph of its own, which this work becomes a part of."""
    return given.is_cuda and torch.cuda.is_current_stream_capturing()

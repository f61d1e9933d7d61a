"""A rig in a process of its own, so that the waiting threads of one engine slow no other.

OpenMP's, TBB's and onnxruntime's threads spin for a while after each call: beside another engine in
the same process, or at once in another, they take its cores from it.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Queue
from time import monotonic, process_time, sleep
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from stae_cli.benchmark.report import Case
from stae_cli.benchmark.rig import Entrant, Rig, reason
from stae_cli.benchmark.stopwatch import Key, Shape
from stae_cli.codec.device import is_memory_error
from stae_cli.errors import StaeError
from stae_cli.network.architecture import Architecture
from stae_cli.network.stupid_ae import StupidAE

LOOK = 0.002  # seconds between looks at whether threads still spin
AT_REST = 0.1  # of a core: less is no spinning
DYING = 0.1  # seconds from the end of its pipe to that of a process
LONGEST_SPIN = 1.0  # seconds; Intel's OpenMP spins for 0.2


class ProcessError(StaeError):
    """A process of the benchmark has died."""


class RigApart:
    """A `Rig` on the CPU in a process that starts when it is first needed, and again after it died.

    Methods are those of `Rig`; each raises ProcessError besides, if the process dies.

    Args:
        name: of the network, for messages.
        model: the reference model.
        dtype: what networks compute in.
    """

    def __init__(self, name: str, model: StupidAE, dtype: torch.dtype) -> None:
        self._name, self._architecture, self._dtype = name, model.architecture, dtype
        self._weights = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
        self._child: _Child | None = None

    def matmuls(self, shapes: Sequence[Shape]) -> list[Shape]:
        return self._ask("matmuls", shapes)

    def begin(self, case: Case) -> None:
        self._ask("begin", case)

    def prepare(self, name: str) -> list[Entrant]:
        return self._ask("prepare", name)

    def sample(self, key: Key) -> float:
        return self._ask("sample", key)

    def outputs(self, name: str) -> list[NDArray[np.float32]]:
        return self._ask("outputs", name)

    def peak_bytes(self) -> int | None:
        return self._ask("peak_bytes")

    def end(self) -> None:
        """Ends the process at once: it holds nothing that must be kept."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _ask(self, method: str, *arguments: object) -> Any:
        if self._child is None:
            made = self._architecture, self._weights, self._dtype, torch.get_num_threads()
            self._child = _Child(*made)
        try:
            answer = self._child.ask(method, *arguments)
        except (EOFError, OSError) as error:
            ended = self._child.end()
            self._child = None
            raise ProcessError(
                f"the process that timed {self._name} ended with {ended}",
                "memory may be short: give a smaller `--batch` or `--size`",
            ) from error
        if isinstance(answer, _Failure):
            answer.reraise()
        return answer


@dataclass(frozen=True)
class _Failure:
    """What a child's method raised; errors of engines themselves may not survive a pipe."""

    error: StaeError | None
    text: str = ""
    out_of_memory: bool = False

    def reraise(self) -> NoReturn:
        if self.error is not None:
            raise self.error
        raise (torch.OutOfMemoryError if self.out_of_memory else RuntimeError)(self.text)


class _Child:
    """The process: calls go to its stdin, and results come from its stdout.

    A group of its own keeps Ctrl-C from it, and has compilers that it started end with it.
    """

    def __init__(self, *made: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._calls, self._results = self._process.stdin, self._process.stdout
        with suppress(OSError):  # a process that died at once is noticed when it is asked
            self._send(made)

    def ask(self, *call: object) -> object:
        """Raises EOFError or OSError if the process is dead."""
        self._send(call)
        return pickle.load(self._results)  # noqa: S301  # what `serve` has dumped

    def end(self) -> str:
        """Ends the process, unless it has ended by itself; says how it did."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(DYING)
        if self._process.poll() is None:
            self._kill()
        for pipe in (self._calls, self._results):
            with suppress(OSError):  # what could not be sent any more
                pipe.close()
        code = self._process.wait()
        return signal.Signals(-code).name if code < 0 else f"code {code}"

    def _send(self, message: object) -> None:
        pickle.dump(message, self._calls)
        self._calls.flush()

    def _kill(self) -> None:
        if hasattr(os, "killpg"):
            os.killpg(self._process.pid, signal.SIGKILL)
        else:  # on Windows
            self._process.kill()


def serve() -> None:
    """The life of the process: calls come and results go, until the first process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Windows it has no group of its own
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no result
    calls: Queue[Any] = Queue()
    threading.Thread(target=_listen, args=(calls,), daemon=True).start()
    rig = _rig(*calls.get())
    while True:
        method, *arguments = calls.get()
        result = _result(getattr(rig, method), arguments)
        _rest()
        pickle.dump(result, results)
        results.flush()


def _listen(calls: Queue[Any]) -> None:
    """Puts calls into the queue; when no more can come, ends the process, even at work."""
    try:
        while True:
            calls.put(pickle.load(sys.stdin.buffer))  # noqa: S301  # what `_Child` has dumped
    finally:
        os._exit(1)


def _rig(
    architecture: Architecture,
    weights: Mapping[str, NDArray[np.float32]],
    dtype: torch.dtype,
    threads: int,
) -> Rig:
    torch.set_num_threads(threads)
    with torch.device("meta"):
        model = StupidAE(architecture).eval()
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    model.load_state_dict(tensors, assign=True)
    return Rig(model, torch.device("cpu"), dtype)


def _result(method: Callable[..., object], arguments: Sequence[object]) -> object:
    try:
        return method(*arguments)
    except StaeError as error:
        return _Failure(error)
    except (RuntimeError, MemoryError) as error:
        return _Failure(None, reason(error), is_memory_error(error))


def _rest() -> None:
    """Waits until no thread of this process spins: 5 ms after torch, 30 ms after onnxruntime."""
    start = monotonic()
    while monotonic() - start < LONGEST_SPIN:
        before = process_time()
        sleep(LOOK)
        if process_time() - before < AT_REST * LOOK:
            return

"""Ray workers: actors on the machines of a cluster that share a run, through Ray Data."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from stae_cli.errors import DeviceError, StaeError
from stae_cli.runs.tally import PartTally, Tally
from stae_cli.runs.workers import CodecMaker, Task, Worker, Workers

PATIENCE = 0.2  # seconds between checks whether to stop
RETRIES = 3  # of a part whose actor dies: it may be the part that kills it
CPU_THREADS = 2  # one reads while the other waits for the network, on the one core of an actor

_log = logging.getLogger(__name__)


class RayActors(Workers):
    """Between `smallest` and `largest` actors, each with a GPU or a CPU of its own.

    Ray restarts actors that died, elsewhere if their machine is gone, with the part they had; its
    finished outputs are skipped.

    Args:
        device: `cuda`, `cpu` or `auto`.
        address: of the cluster; None leaves it to Ray, which may start one on this machine.
        smallest: how many actors to start with.
        largest: None for one on each of the cluster's present devices.
        make_codec: gives each actor its codec.
    """

    def __init__(
        self,
        device: str,
        address: str | None,
        smallest: int,
        largest: int | None,
        make_codec: CodecMaker,
    ) -> None:
        self.device, self.address = device, address
        self.smallest, self.largest = smallest, largest
        self._make_codec = make_codec

    @property
    def compute_dtype(self) -> str:
        return self.make_codec.dtype_name

    @cached_property
    def make_codec(self) -> CodecMaker:
        """What gives each actor its codec, in the dtype of the cluster's devices."""
        return self._make_codec.on({"cuda" if self._on_gpus else "cpu"})

    @property
    def threads(self) -> int:
        gpus = self._devices("GPU")
        if not self._on_gpus or not gpus:  # a cluster that grows on demand may have none yet
            return CPU_THREADS
        return max(1, self._devices("CPU") // gpus)

    def run(self, task: Task[Any], parts: Iterable[Any], tally: Tally) -> None:
        rows = [{"part": pickle.dumps(part)} for part in parts]
        if not rows:
            return
        device = "cuda" if self._on_gpus else "cpu"
        worker = Worker(task, self.make_codec, device)
        with contextlib.redirect_stdout(sys.stderr):  # Ray prints there what happens to actors
            results = self._results(worker, rows)
            try:
                for part in _until(lambda: tally.interrupted, results):
                    tally.add(part)
            finally:
                self._ray.shutdown()  # ends the actors, also in the middle of their parts

    def _results(self, worker: Worker, rows: list[dict[str, Any]]) -> Iterator[Any]:
        from ray.data import ActorPoolStrategy, from_items

        largest = self.largest or max(
            self.smallest, self._devices("GPU" if self._on_gpus else "CPU")
        )
        _log.info(
            "%d to %d actors do %d parts on %s", self.smallest, largest, len(rows), worker.device
        )
        data = from_items(rows, override_num_blocks=len(rows))
        rows.clear()  # Ray has them now
        results = data.map_batches(
            _Actor,
            batch_size=1,
            compute=ActorPoolStrategy(min_size=self.smallest, max_size=largest),
            num_gpus=1 if self._on_gpus else 0,
            num_cpus=1,
            max_task_retries=RETRIES,
            fn_constructor_kwargs={"worker": worker, "folder": os.getcwd()},  # noqa: PTH109
        )
        return iter(results.iter_rows())

    @property
    def _on_gpus(self) -> bool:
        wanted = self.device == "cuda"
        if wanted and not self._devices("GPU") and self.largest is None:
            raise DeviceError(
                "the Ray cluster has no GPU",
                "use `--device cpu`; or, if it grows on demand, give `--max-actors`",
            )
        return wanted or (self.device == "auto" and self._devices("GPU") > 0)

    def _devices(self, kind: str) -> int:
        return int(self._ray.cluster_resources().get(kind, 0))

    @cached_property
    def _ray(self) -> Any:
        """Ray, connected."""
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise StaeError(
                f"`--engine ray` needs a package: {error}", "pip install 'stae[ray]'"
            ) from error
        handler = signal.getsignal(signal.SIGTERM)
        try:
            _knock(self.address)
            ray.init(
                address=self.address,
                logging_level=logging.ERROR,
                log_to_driver=False,
                include_dashboard=False,
            )
        except Exception as error:  # Ray raises many kinds, also plain ones
            raise StaeError(
                f"cannot reach Ray at `{self.address or 'its default address'}`: {error}",
                "check `--ray-address` and RAY_ADDRESS, that the cluster runs, and whether it "
                "wants a token (RAY_AUTH_MODE=token)",
            ) from error
        finally:
            signal.signal(signal.SIGTERM, handler)  # Ray replaces it
        ray.data.DataContext.get_current().enable_progress_bars = False
        for log in logging.getLogger("ray.data").handlers:
            if isinstance(log, logging.StreamHandler):  # the others write files
                log.setLevel(logging.CRITICAL + 1)  # the run reports what ends it
        return ray


class _Actor:
    """A worker as Ray Data calls it: rows with parts to rows with tallies."""

    def __init__(self, worker: Worker, folder: str) -> None:
        with contextlib.suppress(OSError):  # not on that machine: relative paths fail by themselves
            os.chdir(folder)
        self._worker = worker

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
        parts = [pickle.loads(part) for part in batch["part"]]  # noqa: S301 (of our own run)
        return {"tally": [pickle.dumps(self._worker(part)) for part in parts]}


def _knock(address: str | None) -> None:
    """Raises OSError if nothing listens there: Ray would try for minutes."""
    host, _, port = (address or "").replace("[", "").replace("]", "").rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _until(interrupted: Callable[[], bool], results: Iterator[Any]) -> Iterator[PartTally]:
    """The tallies in the rows of results, until the run is interrupted."""
    found: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=_collect, args=(results, found), daemon=True).start()
    while True:
        stopping = interrupted()  # finished parts that are in the queue are still counted
        try:
            row = found.get(timeout=0 if stopping else PATIENCE)
        except queue.Empty:
            if stopping:
                return
            continue
        if row is None:
            return
        if isinstance(row, Exception):
            raise _ended(row) from row
        yield pickle.loads(row["tally"])  # noqa: S301 (of our own actors)


def _collect(results: Iterator[Any], found: queue.Queue[Any]) -> None:
    """Runs in a thread of its own: the main thread would miss signals while it waits for Ray."""
    try:
        for row in results:
            found.put(row)
        found.put(None)
    except Exception as error:  # noqa: BLE001 (raised again where the run can end)
        found.put(error)


def _ended(error: Exception) -> StaeError:
    reason = str(error).strip().splitlines() or [""]
    return StaeError(
        f"Ray ended the run: {type(error).__name__}: {reason[-1]}",
        "Ray's logs say more; run the same command again: it continues where it stopped",
    )

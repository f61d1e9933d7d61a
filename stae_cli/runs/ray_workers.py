"""Ray: a run's parts done by actors on the machines of a cluster, through Ray Data."""

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
from dataclasses import replace
from functools import cached_property
from typing import Any

from stae_cli.errors import DeviceError, StaeError
from stae_cli.runs.tally import Tally
from stae_cli.runs.workers import Worker, Workers

PATIENCE = 0.2  # seconds between looks at whether to stop
RETRIES = 3  # of a part whose actor dies: it may be the part that kills it
CPU_THREADS = 2  # one reads while the other waits for the network, on the one core of an actor


class RayActors(Workers):
    """Between `smallest` and `largest` actors, each with a GPU or a CPU of its own.

    Ray starts actors again that died, elsewhere if their machine is gone, with the part they had;
    what of it was done is found done.

    Args:
        device: `cuda`, `cpu` or `auto`.
        address: of the cluster; None leaves it to Ray, which may start one on this machine.
        smallest: how many to wait for.
        largest: None for as many as there are devices now.
    """

    def __init__(
        self, device: str, address: str | None, smallest: int = 1, largest: int | None = None
    ) -> None:
        self.device, self.address = device, address
        self.smallest, self.largest = smallest, largest

    @property
    def threads(self) -> int:
        gpus = self._devices("GPU")
        if not self._on_gpus or not gpus:  # those of a cluster that grows on demand are to come
            return CPU_THREADS
        return max(1, self._devices("CPU") // gpus)

    def tallies(
        self, worker: Worker, parts: Iterable[Any], *, interrupted: Callable[[], bool]
    ) -> Iterator[Tally]:
        rows = [{"part": pickle.dumps(part)} for part in parts]
        if not rows:
            return
        device = "cuda" if self._on_gpus else "cpu"
        with contextlib.redirect_stdout(sys.stderr):  # Ray prints there what happens to actors
            results = self._results(replace(worker, device=device), rows)
            try:
                yield from _until(interrupted, results)
            finally:
                self._ray.shutdown()  # ends the actors, also in the midst of their parts

    def _results(self, worker: Worker, rows: list[dict[str, Any]]) -> Iterator[Any]:
        from ray.data import ActorPoolStrategy, from_items

        largest = self.largest or max(
            self.smallest, self._devices("GPU" if self._on_gpus else "CPU")
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
                address=self.address, logging_level=logging.ERROR, log_to_driver=False,
                include_dashboard=False,
            )  # fmt: skip
        except Exception as error:  # of many kinds, some of them bare
            raise StaeError(
                f"cannot reach Ray at `{self.address or 'its default address'}`: {error}",
                "check `--ray-address` and RAY_ADDRESS, that the cluster runs, and whether it "
                "wants a token (RAY_AUTH_MODE=token)",
            ) from error
        finally:
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own in its place
        ray.data.DataContext.get_current().enable_progress_bars = False
        for log in logging.getLogger("ray.data").handlers:
            if isinstance(log, logging.StreamHandler):  # the others write files
                log.setLevel(logging.CRITICAL + 1)  # what ends a run is said by the run
        return ray


class _Actor:
    """A worker as Ray Data calls it: rows of parts to rows of tallies."""

    def __init__(self, worker: Worker, folder: str) -> None:
        with contextlib.suppress(OSError):  # elsewhere; relative paths are missed soon enough
            os.chdir(folder)
        self._worker = worker

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
        parts = [pickle.loads(part) for part in batch["part"]]  # noqa: S301 (of our own run)
        return {"tally": [pickle.dumps(self._worker(part)) for part in parts]}


def _knock(address: str | None) -> None:
    """Raises OSError where nobody listens: Ray would try for minutes."""
    host, _, port = (address or "").replace("[", "").replace("]", "").rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _until(interrupted: Callable[[], bool], results: Iterator[Any]) -> Iterator[Tally]:
    """The tallies out of the rows of results, as long as nobody interrupts."""
    found: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=_collect, args=(results, found), daemon=True).start()
    while True:
        stopping = interrupted()  # what has come already is counted
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
    """Runs in a thread of its own: waiting for Ray, this process would miss signals."""
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
        "Ray's logs say more; run the same command again: it goes on where it stopped",
    )

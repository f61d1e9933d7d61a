"""Workers: what does a run's parts, in this process or in others, each with a codec of its own."""

from __future__ import annotations

import logging
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from logging.handlers import QueueHandler
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from stae_cli._version import __version__
from stae_cli.cores import usable_cores
from stae_cli.errors import StaeError
from stae_cli.latents.manifest import Manifest
from stae_cli.latents.run_record import RunRecord, read_record
from stae_cli.runs.tally import PartTally, Tally
from stae_cli.storage.destination import Destination

if TYPE_CHECKING:
    import torch

    from stae_cli.checkpoints.checkpoint import Checkpoint
    from stae_cli.codec.pixel_codec import PixelCodec

Part = TypeVar("Part")

PACKAGE_LOG = logging.getLogger("stae_cli")
_log = logging.getLogger(__name__)


class Task(ABC, Generic[Part]):
    """What is to be done with each part of a run; it can be pickled, and so can the parts."""

    destination: Destination

    @property
    def strict(self) -> bool:
        """Whether the first failure ends the run."""
        return False

    @property
    @abstractmethod
    def record(self) -> RunRecord:
        """What DEST records of its outputs."""

    def new_manifest(self) -> Manifest | None:
        """An empty manifest for one process, if the run writes one."""
        return None

    @abstractmethod
    def do(self, parts: Iterable[Part], codec: PixelCodec, tally: Tally) -> None:
        """Does some parts, as far as they are not done yet, and counts them in `tally`.

        Raises:
            StaeError: DEST belongs to another run, or can no longer be written to.
        """


class Workers(ABC):
    """Where a run's network runs, and how parts get there.

    `codec` is this process's, if the network runs here.
    """

    codec: PixelCodec | None = None

    @property
    @abstractmethod
    def compute_dtype(self) -> str:
        """The name of the dtype in which all of them compute."""

    @property
    @abstractmethod
    def threads(self) -> int:
        """Reading threads for each worker, unless the user says otherwise."""

    @abstractmethod
    def run(self, task: Task[Any], parts: Iterable[Any], tally: Tally) -> None:
        """Has all the parts done, begun in their order, and counts them in `tally`.

        If the tally is interrupted, parts that are half done may be cut short.

        Raises:
            StaeError: the run cannot go on; or a worker cannot be had, or died.
        """


class ThisProcess(Workers):
    """The process that began the run: it reads ahead and packs across parts, as if all were one."""

    def __init__(self, codec: PixelCodec) -> None:
        self.codec = codec

    @property
    def compute_dtype(self) -> str:
        assert self.codec is not None
        return str(self.codec.dtype).removeprefix("torch.")

    @property
    def threads(self) -> int:
        return usable_cores()

    def run(self, task: Task[Any], parts: Iterable[Any], tally: Tally) -> None:
        assert self.codec is not None
        task.do(parts, self.codec, tally)


@dataclass(frozen=True)
class CodecMaker:
    """How each worker gets its codec: `load` gives the checkpoint, on any machine of the run."""

    load: Callable[[], Checkpoint]
    weights_sha256: str
    dtype: torch.dtype | None
    batch_patches: int | None

    def on(self, kinds: Collection[str]) -> CodecMaker:
        """The same for devices of these kinds, which all have to compute in one dtype."""
        import torch

        if self.dtype is not None:
            return self
        dtype = torch.float16 if set(kinds) == {"cuda"} else torch.float32
        return replace(self, dtype=dtype)

    @property
    def dtype_name(self) -> str:
        """The name of the dtype."""
        return str(self.dtype).removeprefix("torch.")

    def codec(self, device: str) -> PixelCodec:
        """The codec on a device of this machine.

        Raises:
            StaeError: the device or the checkpoint is missing, or the checkpoint is another one.
        """
        checkpoint = self.load()
        if checkpoint.fingerprint != self.weights_sha256:
            raise StaeError(
                f"`{checkpoint.name}` is another checkpoint here ({checkpoint.fingerprint[:12]}) "
                f"than where the run began ({self.weights_sha256[:12]})",
                "give every machine the same file",
            )
        return self.codec_of(checkpoint, device)

    def codec_of(self, checkpoint: Checkpoint, device: str | torch.device) -> PixelCodec:
        """The same, of a checkpoint that is loaded already.

        Raises:
            DeviceError: the device is missing.
        """
        from stae_cli.codec.device import pick_device
        from stae_cli.codec.pixel_codec import PixelCodec

        return PixelCodec(
            checkpoint.model(),
            device=pick_device(device),
            dtype=self.dtype,
            batch_patches=self.batch_patches,
        )


@dataclass
class Worker:
    """Does parts of a run in another process than the one that began it, one at a time.

    It can be pickled before its first part, when the codec is made. `version` and `log_level` are
    those of the process that began the run.
    """

    task: Task[Any]
    make_codec: CodecMaker
    device: str = "auto"
    stopped: Callable[[], bool] | None = None
    version: str = __version__
    log_level: int = field(default_factory=PACKAGE_LOG.getEffectiveLevel)

    def __call__(self, part: Any) -> PartTally:
        """What became of one part; an error that ended it early is in the tally too."""
        tally = Tally(
            lambda _: None,
            strict=self.task.strict,
            stopped=self.stopped or (lambda: False),
            manifest=self._manifest,
        )
        lines = b""
        ended: StaeError | None = None
        with _kept_log(self.log_level) as log:
            try:
                if not tally.interrupted:
                    self.task.do([part], self._codec, tally)
                    lines = self._manifest.take() if self._manifest else b""
            except StaeError as error:
                # A copy: the raised one holds frames, and with them threads that wait for it.
                ended = type(error)(error.message, error.hint)
            except Exception as error:  # noqa: BLE001 (it has to reach the user from here, too)
                _log.info("an unexpected error", exc_info=True)
                ended = _unexpected(error)
        records = [log.get() for _ in range(log.qsize())]
        return tally.part(manifest=lines, log=records, error=ended)

    @cached_property
    def _manifest(self) -> Manifest | None:
        """One for all the parts of a process, so that DEST's is outdated once."""
        return self.task.new_manifest()

    @cached_property
    def _codec(self) -> PixelCodec:
        if self.version != __version__:
            raise StaeError(
                f"stae is {__version__} on a machine of the run, and {self.version} where it began",
                "install one version everywhere",
            )
        record = read_record(self.task.destination)
        if record is None or self.task.record.differences(record):
            raise StaeError(
                f"`{self.task.destination.place()}` is not the same DEST on every machine",
                "give a folder that all of them share, or a URL",
            )
        return self.make_codec.codec(self.device)


@contextmanager
def _kept_log(level: int) -> Iterator[SimpleQueue[logging.LogRecord]]:
    """What is logged within at this level, in a form that can be pickled."""
    records: SimpleQueue[logging.LogRecord] = SimpleQueue()
    handler, before = QueueHandler(records), PACKAGE_LOG.level
    PACKAGE_LOG.setLevel(level)
    PACKAGE_LOG.addHandler(handler)
    try:
        yield records
    finally:
        PACKAGE_LOG.removeHandler(handler)
        PACKAGE_LOG.setLevel(before)


def _unexpected(error: Exception) -> StaeError:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return StaeError(
        f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})",
        "this should not happen: please report it; what is done is kept",
    )

"""Workers: processes that do a run's parts between them, each with a codec of its own."""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from stae_cli._version import __version__
from stae_cli.errors import StaeError
from stae_cli.latents.run_record import RunRecord, read_record
from stae_cli.runs.tally import Report, Tally
from stae_cli.storage.destination import Destination

if TYPE_CHECKING:
    import torch

    from stae_cli.checkpoints.checkpoint import Checkpoint
    from stae_cli.codec.pixel_codec import PixelCodec

Part = TypeVar("Part", contravariant=True)


class Task(Protocol[Part]):
    """What is to be done with each part of a run; it can be pickled, and so can the parts."""

    @property
    def destination(self) -> Destination:
        """DEST, prepared."""

    @property
    def record(self) -> RunRecord:
        """What DEST says of its outputs."""

    @property
    def strict(self) -> bool:
        """Whether the first failure is the end."""

    def do(self, part: Part, codec: PixelCodec, report: Report) -> bytes:
        """Does a part, counts it in `report`, and returns lines for the run's manifest.

        Raises:
            StaeError: the run cannot go on.
        """


@dataclass(frozen=True)
class CodecMaker:
    """How each worker gets its codec: `load` gives the checkpoint, wherever the worker is."""

    load: Callable[[], Checkpoint]
    weights_sha256: str
    dtype: torch.dtype | None
    batch_patches: int | None

    def codec(self, device: str) -> PixelCodec:
        """The codec on a device of this machine.

        Raises:
            StaeError: the device or the checkpoint is not there, or is another one.
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
            DeviceError: the device is not there.
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
    """Does parts of a run, one at a time.

    It can be pickled before its first part, when the codec is made. `version` is that of the
    process which began the run.
    """

    task: Task[Any]
    make_codec: CodecMaker
    device: str = "auto"
    stopped: Callable[[], bool] | None = None
    version: str = __version__

    def __call__(self, part: Any) -> Tally:
        """What became of one part; what ended it before its time is in the tally too."""
        report = Report(
            lambda _: None, strict=self.task.strict, stopped=self.stopped or (lambda: False)
        )
        manifest = b""
        ended: StaeError | None = None
        try:
            if not report.interrupted:
                manifest = self.task.do(part, self._codec, report)
        except StaeError as error:
            # Anew: the one that was raised holds frames, whose threads would wait for their end.
            ended = type(error)(error.message, error.hint)
        except Exception as error:  # noqa: BLE001 (it has to reach the user from here, too)
            ended = _unexpected(error)
        return report.tally(manifest, ended)

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


def _unexpected(error: Exception) -> StaeError:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return StaeError(
        f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})",
        "this should not happen: please report it; what is done is kept",
    )


class Workers(ABC):
    """Where workers are, and how parts get to them."""

    @property
    @abstractmethod
    def threads(self) -> int:
        """Reading threads for each, unless the user says otherwise."""

    @abstractmethod
    def tallies(
        self, worker: Worker, parts: Iterable[Any], *, interrupted: Callable[[], bool]
    ) -> Iterator[Tally]:
        """Has copies of `worker` do the parts; yields each part's tally when it is done.

        Args:
            worker: what each process starts with.
            parts: in the order in which they are begun.
            interrupted: whether to come to an end; parts that are half done may be cut short.

        Raises:
            StaeError: a worker cannot be had, or died.
        """

"""Where a run's network runs: in this process, on several devices, or on Ray."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

from stae_cli.cli.console import log_info
from stae_cli.cli.launchers import local_rank, number_in
from stae_cli.cli.options import Dtype, parse_device, parse_dtype, sharing_option
from stae_cli.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from stae_cli.checkpoints.checkpoint import Checkpoint
    from stae_cli.codec.pixel_codec import PixelCodec
    from stae_cli.runs.workers import CodecMaker, Workers
    from stae_cli.storage.destination import Destination

ALL = "cuda:all"
RAY_ENVIRONMENT = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # Ray reports planned restarts of actors as errors
    "RAY_ENABLE_AUTO_CONNECT": "0",  # else threads start Ray again while a run is ending
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
}

Engine = Literal["local", "ray"]

EngineOption = Annotated[
    Engine, sharing_option("--engine", help="ray: on the machines of a Ray cluster (`stae[ray]`).")
]
RayAddress = Annotated[
    str | None,
    sharing_option(
        "--ray-address",
        metavar="ADDRESS",
        help="Address of the Ray cluster. By default RAY_ADDRESS, else a new one on this machine.",
        show_default=False,
    ),
]
MinActors = Annotated[
    int, sharing_option("--min-actors", metavar="N", min=1, help="Ray actors to start with.")
]
MaxActors = Annotated[
    int | None,
    sharing_option(
        "--max-actors",
        metavar="N",
        min=1,
        help="Most Ray actors. By default one per GPU of the cluster, or per CPU without GPUs.",
        show_default=False,
    ),
]
UnitRank = Annotated[
    int | None,
    sharing_option(
        "--unit-rank", metavar="N", min=0, help="Do only this part of the run, counted from 0."
    ),
]
UnitCount = Annotated[
    int | None,
    sharing_option(
        "--unit-count",
        metavar="N",
        min=1,
        help="Number of parts. By default as torchrun or Slurm say, else the whole run.",
    ),
]


@dataclass(frozen=True)
class Place:
    """Where a run's network runs: in `workers`, or on `device` of this process."""

    device: str
    others: Callable[[CodecMaker], Workers] | None = None

    def facts(self, dtype: Dtype) -> dict[str, str]:
        """What the report says of workers, whose codecs are not in this process."""
        return {"device": self.device, "dtype": dtype} if self.others else {}

    def workers(
        self, load: Callable[[], Checkpoint], dtype: Dtype, batch_patches: int | None
    ) -> tuple[Workers, Checkpoint]:
        """The workers, and the checkpoint that `load` gives here and wherever they are.

        Raises:
            DeviceError: this process's device is missing, which shows before the checkpoint loads.
        """
        from stae_cli.codec.device import pick_device
        from stae_cli.runs.workers import CodecMaker, ThisProcess

        device = self.device if self.others else pick_device(self.device)
        checkpoint = load()
        maker = CodecMaker(load, checkpoint.fingerprint, parse_dtype(dtype), batch_patches)
        if self.others:
            return self.others(maker), checkpoint
        return ThisProcess(maker.codec_of(checkpoint, device)), checkpoint


def dtype_of(dest: Destination, dtype: Dtype, *, overwrite: bool) -> Dtype:
    """The dtype to compute in: `auto` goes on with the one that DEST records.

    Raises:
        StaeError: the run record is damaged.
    """
    from stae_cli.latents.run_record import read_settings

    record = None if overwrite or dtype != "auto" else read_settings(dest)
    if record is None or record.compute_dtype not in get_args(Dtype):
        return dtype
    log_info(f"computing in {record.compute_dtype}, as DEST records")
    return cast(Dtype, record.compute_dtype)


def local_codec(
    load: Callable[[], Checkpoint], device: str, dtype: Dtype, batch_patches: int | None = None
) -> tuple[PixelCodec, Checkpoint]:
    """A codec in this process, and the checkpoint that `load` gives it.

    Raises:
        DeviceError: the device is missing, which shows before the checkpoint loads.
    """
    from stae_cli.codec.device import pick_device
    from stae_cli.codec.pixel_codec import PixelCodec

    place, checkpoint = pick_device(device), load()
    model, kind = checkpoint.model(), parse_dtype(dtype)
    return PixelCodec(model, device=place, dtype=kind, batch_patches=batch_patches), checkpoint


@dataclass(frozen=True)
class Actors:
    """The options of a Ray cluster."""

    address: str | None = None
    least: int = 1
    most: int | None = None


def parse_place(device: str, engine: Engine, actors: Actors) -> Place:
    """What the options name.

    Raises:
        UsageError: options that do not go together, or an unknown kind of device.
        DeviceError: `cuda:all` without a CUDA device.
    """
    if engine == "ray":
        return _on_ray(device, actors)
    if actors != Actors():
        raise UsageError(
            "`--ray-address`, `--min-actors` and `--max-actors` are for `--engine ray`",
            "add that, or omit them",
        )
    names = _all_cuda() if device == ALL else [parse_device(name) for name in device.split(",")]
    if len(names) == 1:
        return Place(local_device(names[0]))
    from stae_cli.runs.local_workers import Processes

    log_info(f"one process on each of {', '.join(names)}")
    return Place(",".join(names), partial(Processes, names))


def _on_ray(device: str, actors: Actors) -> Place:
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(
            f"`--device {device}` cannot be used on a Ray cluster",
            "use auto, cuda or cpu: Ray chooses among the GPUs",
        )
    if actors.most is not None and actors.most < actors.least:
        raise UsageError(
            f"`--min-actors {actors.least}` is more than `--max-actors {actors.most}`",
            "give a larger `--max-actors`, or a smaller `--min-actors`",
        )
    from stae_cli.runs.ray_workers import RayActors

    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return Place(device, partial(RayActors, device, actors.address, actors.least, actors.most))


def _all_cuda() -> list[str]:
    import torch

    count = torch.cuda.device_count()
    if not count:
        raise DeviceError(
            f"`--device {ALL}`, but no CUDA device is visible",
            "use `--device cpu`, or check the driver and CUDA_VISIBLE_DEVICES",
        )
    return [f"cuda:{index}" for index in range(count)]


def local_device(device: str) -> str:
    """The device of this process: where a launcher started several, `cuda` means its own one."""
    name = local_rank()
    if device not in ("auto", "cuda") or name is None:
        return device
    import torch

    rank, count = number_in(name), torch.cuda.device_count()
    own = f"cuda:{rank % count}" if count else device
    log_info(f"device {own}, by {name}")
    return own

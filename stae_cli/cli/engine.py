"""Where the network of a run runs: here, in a process on each of several devices, or on Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from stae_cli.cli.options import Dtype, parse_device, parse_dtype
from stae_cli.cli.share import local_device
from stae_cli.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from stae_cli.checkpoints.checkpoint import Checkpoint
    from stae_cli.runs.workers import CodecMaker, Workers

ALL = "cuda:all"
RAYS_ENVIRONMENT = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # it calls what is meant an error, of actors that restart
    "RAY_ENABLE_AUTO_CONNECT": "0",  # else threads start it again while a run comes to its end
    "RAY_USAGE_STATS_ENABLED": "0",  # a run tells nobody
}


class Engine(StrEnum):
    """What runs the network."""

    local = "local"
    ray = "ray"


EngineOption = Annotated[
    Engine, typer.Option("--engine", help="ray: on the machines of a Ray cluster (`stae[ray]`).")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="ADDRESS",
        help="Of the Ray cluster; by default as RAY_ADDRESS says, else one on this machine.",
        show_default=False,
    ),
]
MinActors = Annotated[
    int, typer.Option("--min-actors", min=1, help="Actors of Ray that start at once.")
]
MaxActors = Annotated[
    int | None,
    typer.Option(
        "--max-actors",
        min=1,
        help="Most actors of Ray. By default one for each GPU of the cluster, else for each CPU.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Place:
    """Where a run's network runs: what `others` makes, or `device` of this process."""

    device: str
    others: Callable[[CodecMaker], Workers] | None = None

    def facts(self, dtype: Dtype) -> dict[str, str]:
        """For the report, what a codec of this process would say: what was asked of the workers."""
        return {"device": self.device, "dtype": dtype.value} if self.others else {}

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


def parse_place(
    device: str,
    engine: Engine,
    environment: Mapping[str, str],
    *,
    address: str | None,
    min_actors: int,
    max_actors: int | None,
) -> Place:
    """What the options name.

    Raises:
        UsageError: options that do not go together, or no such kind of device.
        DeviceError: all CUDA devices, where there is none.
    """
    if engine is Engine.ray:
        return _on_ray(device, address, min_actors, max_actors)
    if (address, min_actors, max_actors) != (None, 1, None):
        raise UsageError(
            "`--ray-address`, `--min-actors` and `--max-actors` are for `--engine ray`",
            "add that, or leave them away",
        )
    names = _all_cuda() if device == ALL else [parse_device(name) for name in device.split(",")]
    if len(names) == 1:
        return Place(local_device(names[0], environment))
    from stae_cli.runs.local_workers import Processes

    return Place(",".join(names), partial(Processes, names))


def _on_ray(device: str, address: str | None, min_actors: int, max_actors: int | None) -> Place:
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(
            f"`--device {device}` is no device of a Ray cluster",
            "use auto, cuda or cpu: Ray chooses among the GPUs",
        )
    if max_actors is not None and max_actors < min_actors:
        raise UsageError(
            f"at least {min_actors} actors, but {max_actors} at most",
            "give a larger `--max-actors`, or a smaller `--min-actors`",
        )
    from stae_cli.runs.ray_workers import RayActors

    for name, value in RAYS_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return Place(device, partial(RayActors, device, address, min_actors, max_actors))


def _all_cuda() -> list[str]:
    import torch

    count = torch.cuda.device_count()
    if not count:
        raise DeviceError(
            f"`--device {ALL}`, but no CUDA device is visible",
            "use `--device cpu`, or check the driver and CUDA_VISIBLE_DEVICES",
        )
    return [f"cuda:{index}" for index in range(count)]

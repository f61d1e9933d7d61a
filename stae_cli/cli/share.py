"""Which part of a run is this process's: by options, or as torchrun and Slurm say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from stae_cli.errors import UsageError

if TYPE_CHECKING:
    from stae_cli.storage.shares import Share

LAUNCHERS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))
LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID")

UnitRank = Annotated[
    int | None,
    typer.Option("--unit-rank", min=0, help="Do this part of the run, counted from 0, ..."),
]
UnitCount = Annotated[
    int | None,
    typer.Option(
        "--unit-count",
        min=1,
        help="... of so many. By default as torchrun or Slurm say, else the whole run.",
    ),
]


def parse_share(rank: int | None, count: int | None, environment: Mapping[str, str]) -> Share:
    """The part that the options name; without them, the part that a launcher names.

    Raises:
        UsageError: one of the options alone, or a rank that does not exist.
    """
    from stae_cli.storage.shares import Share

    if (rank is None) != (count is None):
        raise UsageError(
            "a part of a run needs both its numbers", "give `--unit-rank` and `--unit-count`"
        )
    if rank is not None and count is not None:
        return Share(rank, count)
    for rank_name, count_name in LAUNCHERS:
        if rank_name in environment and count_name in environment:
            return Share(
                _number(rank_name, environment[rank_name]),
                _number(count_name, environment[count_name]),
            )
    return Share()


def local_device(device: str, environment: Mapping[str, str]) -> str:
    """The device of this process among those on the machine: its own, where `cuda` names none."""
    if device not in ("auto", "cuda"):
        return device
    for name in LOCAL_RANKS:
        if name in environment:
            return _own_accelerator(device, _number(name, environment[name]))
    return device


def _own_accelerator(device: str, rank: int) -> str:
    import torch

    count = torch.cuda.device_count()
    return f"cuda:{rank % count}" if count else device


def _number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"`{name}` is `{text}`, which is no number", "unset it, or set it right")
    return int(text)

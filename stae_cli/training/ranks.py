"""The processes of one run: alone, or started together by torchrun."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True)
class Ranks:
    """The number of this process among all of them; `local` counts within its machine."""

    rank: int = 0
    processes: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """The one process that writes files and reports."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """The device of this process: each one has a card of its own."""
        if self.processes > 1 and device.type == "cuda" and device.index is None:
            return torch.device("cuda", self.local)
        return device

    def agreed(self, value: float, device: torch.device) -> float:
        """The first process's value, in all of them."""
        if self.processes == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=device)
        distributed.broadcast(shared, 0)
        return float(shared)

    def mean(self, value: float, device: torch.device) -> float:
        """The mean of all processes' values."""
        if self.processes == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=device)
        distributed.all_reduce(shared)
        return float(shared) / self.processes

    def agreed_any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process."""
        return self.mean(float(flag), device) > 0

    def wait(self) -> None:
        """Waits until all processes are here."""
        if self.processes > 1:
            distributed.barrier()


@contextmanager
def joined(device: str, *, attempt: int = 0) -> Iterator[Ranks]:
    """Joins the processes that torchrun started for the duration of a block; else this one alone.

    Args:
        device: where the network will run; `cpu` talks by gloo, CUDA by NCCL.
        attempt: how often torchrun has restarted them.
    """
    if not distributed.is_torchelastic_launched():
        yield Ranks()
        return
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(distributed.get_node_local_rank())
    shared, rank, processes = next(distributed.rendezvous("env://"))
    # torchrun's store outlives a restart, with the addresses of the processes before it.
    store = distributed.PrefixStore(f"attempt {attempt}", shared)
    distributed.init_process_group(
        "nccl" if cuda else "gloo", store=store, rank=rank, world_size=processes
    )
    try:
        yield Ranks(rank, processes, distributed.get_node_local_rank())
    finally:
        distributed.destroy_process_group()

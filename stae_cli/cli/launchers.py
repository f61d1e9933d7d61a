"""Which part of a run is this process's: by options, or as torchrun or Slurm say."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from stae_cli.cli.console import log_info, print_note
from stae_cli.errors import UsageError

if TYPE_CHECKING:
    from stae_cli.storage.shares import Share

LAUNCHED = ("LOCAL_RANK", "TORCHELASTIC_RUN_ID")  # set by what starts the processes of a machine
CLUSTER = "MASTER_ADDR"  # set by what starts a process on each machine
RANK, COUNT = "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"
SPECIAL_STEPS = 0xFFFFFF00  # from here on: of sbatch's script, of salloc's shell, and so on


def parse_share(rank: int | None, count: int | None) -> Share:
    """The part of a run that the options name, or a launcher without them; a part is announced.

    Raises:
        UsageError: one of the options alone, a rank that does not exist, or an environment that
            does not say which part is meant.
    """
    from stae_cli.storage.shares import Share

    if (rank is None) != (count is None):
        raise UsageError(
            "a part of a run needs both its numbers", "give `--unit-rank` and `--unit-count`"
        )
    if rank is not None and count is not None:
        share = Share(rank, count, "--unit-rank")
    else:
        share = _launched()
    if share.count > 1:
        print_note(f"{share} (as {_says(share.said_by)})")
    return share


def local_rank() -> str | None:
    """The variable that holds the number of this process on its machine, if a launcher set one."""
    if "LOCAL_RANK" in os.environ:
        return "LOCAL_RANK"
    return "SLURM_LOCALID" if "SLURM_LOCALID" in os.environ and _in_step() else None


def number_in(name: str) -> int:
    """The number in a variable of the environment.

    Raises:
        UsageError: it is not a number.
    """
    text = os.environ[name]
    if not text.isdecimal():
        raise UsageError(f"`{name}` is `{text}`, which is not a number", "unset or correct it")
    return int(text)


def _launched() -> Share:
    """The part by torchrun or what sets the same variables, else by Slurm, else everything."""
    from stae_cli.storage.shares import Share

    slurm = _by_slurm()
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return slurm or Share()
    torch = Share(number_in("RANK"), number_in("WORLD_SIZE"), "RANK and WORLD_SIZE")
    if any(name in os.environ for name in LAUNCHED):
        return torch
    if torch.count == 1:
        return slurm or Share()
    # A batch script may set these two for one torchrun on each machine; `srun` passes them on.
    if slurm is not None and torch.numbers != slurm.numbers:
        raise UsageError(
            f"RANK and WORLD_SIZE say {torch}, but Slurm says {slurm}",
            "unset RANK and WORLD_SIZE, or give `--unit-rank` and `--unit-count`",
        )
    if slurm is None and CLUSTER not in os.environ:
        raise UsageError(
            f"RANK and WORLD_SIZE say {torch}, but no launcher seems to have started this process",
            "unset them to encode everything, or give "
            f"`--unit-rank {torch.rank} --unit-count {torch.count}` for that part",
        )
    return torch


def _by_slurm() -> Share | None:
    """The part by `srun`; None if this is not one of several tasks of a step.

    The number of tasks of the whole job says nothing: the script that `sbatch` runs is one process,
    and so is the shell of `srun --pty`, whose other tasks get no terminal and end.
    """
    from stae_cli.storage.shares import Share

    if not (_in_step() and {RANK, COUNT} <= os.environ.keys()):
        if os.environ.get("SLURM_NTASKS", "1") != "1":
            log_info("one process does the whole run; `srun stae ...` would start all tasks of it")
        return None
    share = Share(number_in(RANK), number_in(COUNT), "Slurm")
    if share.count == 1 or ("SLURM_PTY_PORT" in os.environ and _on_terminal()):
        return None
    return share


def _on_terminal() -> bool:
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return any(stream is not None and stream.isatty() for stream in streams)


def _in_step() -> bool:
    """Whether `srun` started this process, not `sbatch` or `salloc`."""
    step = os.environ.get("SLURM_STEP_ID", "")
    return step.isdecimal() and int(step) < SPECIAL_STEPS


def _says(said_by: str) -> str:
    return f"{said_by} {'say' if ' and ' in said_by else 'says'}"

"""How many cores this process may use: fewer than the machine has, in a container or a job."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def visible_cores() -> int:
    """The cores that this process may run on: its affinity, which job schedulers set."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_cores(root: Path = Path("/")) -> int:
    """The cores that this process may run on, or the time of as many that it is granted.

    The latter is the quota of its control group, which containers have: more threads than that
    stand still for a part of each period.

    Args:
        root: of the file system with `proc` and `sys`.
    """
    return max(1, min([visible_cores(), *map(math.ceil, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """What the process's control groups and those around them grant, in cores."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    groups = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Inside of a container its own group is the root, whatever name it has outside.
        inner = Path(name.lstrip("/"))
        for group in dict.fromkeys((inner, *inner.parents)):
            folder = groups / controllers / group if controllers else groups / group
            quota = _quota(folder)
            if quota is not None:
                yield quota


def _quota(folder: Path) -> float | None:
    """What one control group grants, of either version; None where it sets no limit."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii").strip()
                for name in ("quota", "period")
            )
    except (OSError, ValueError):
        return None
    limited = quota.isdigit() and period.isdigit() and int(period) > 0
    return int(quota) / int(period) if limited else None

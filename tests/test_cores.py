"""Cores that a process may use: its affinity, and its control groups' quotas."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stae_cli.cli import main
from stae_cli.cores import usable_cores

ALL = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
PRINTED = "from stae_cli.cores import usable_cores; print(usable_cores())"
THREADS = (
    "import sys; from stae_cli.cli.main import _set_threads; _set_threads(['encode']);"
    "import torch; print(torch.get_num_threads())"
)


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def sixteen(monkeypatch):
    """A process that may run on 16 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


V1 = "4:memory:/job\n3:cpu,cpuacct:/job/step\n"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 16),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 16),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "20000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "nonsense\n"}, 16),
        ({"proc/self/cgroup": "0::/\n"}, 16),
        (  # of the group itself and of those around it, the least
            {
                "proc/self/cgroup": "0::/user/job\n",
                "sys/fs/cgroup/user/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/user/job/cpu.max": "max 100000\n",
            },
            3,
        ),
        (  # the name outside of the container, whose own group is mounted as the root
            {
                "proc/self/cgroup": "0::/docker/8f2a\n",
                "sys/fs/cgroup/cpu.max": "400000 100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu,cpuacct/job/step/cpu.cfs_quota_us": "500000\n",
                "sys/fs/cgroup/cpu,cpuacct/job/step/cpu.cfs_period_us": "100000\n",
            },
            5,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            16,
        ),
    ],
)
def test_quotas_of_control_groups(tmp_path, sixteen, files, cores):
    assert usable_cores(tree(tmp_path, files)) == cores


@pytest.mark.skipif(shutil.which("taskset") is None, reason="needs taskset")
@pytest.mark.parametrize("program", [PRINTED, THREADS])
def test_the_affinity_of_a_real_process(program):
    core = str(min(os.sched_getaffinity(0)))
    command = ["taskset", "-c", core, sys.executable, "-c", program]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    assert (
        subprocess.run(command, check=True, capture_output=True, env=environment).stdout == b"1\n"
    )


@pytest.mark.skipif(ALL < 2, reason="needs two cores")
@pytest.mark.parametrize("program", [PRINTED, THREADS])
def test_a_real_quota(program):
    """Of version 1, where the tests may make a group."""
    group = Path(f"/sys/fs/cgroup/cpu/stae-test-{os.getpid()}")
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text("100000")
    except OSError:
        pytest.skip("needs the right to make a control group of version 1")
    try:
        enter = f"import os; open('{group}/tasks', 'w').write(str(os.getpid())); {program}"
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        command = [sys.executable, "-c", enter]
        ran = subprocess.run(command, check=True, capture_output=True, env=environment)
        assert ran.stdout == b"1\n"
    finally:
        group.rmdir()


@pytest.mark.parametrize(("granted", "set_to"), [(16, None), (3, "3")])
def test_torch_is_told_of_a_quota_alone(monkeypatch, sixteen, granted, set_to):
    """Without one it counts cores itself: those that share a physical core once."""
    monkeypatch.setattr(main, "usable_cores", lambda: granted)
    monkeypatch.setattr(os, "environ", {})
    main._set_threads(["train"])
    assert os.environ == ({} if set_to is None else {"OMP_NUM_THREADS": set_to})
    main._set_threads(["encode"])
    assert os.environ["OMP_WAIT_POLICY"] == "passive"

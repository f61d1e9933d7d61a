"""What a benchmark found, with its units, and the chart of it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stae_cli._version import __version__
from stae_cli.errors import UsageError
from stae_cli.images.drawing import BLUE, FAINT, GREY, INK, Canvas

OURS = "stae"

MARGIN, GUTTER = 28, 36
NAMES, BAR, VALUES = 74, 240, 140  # widths of a panel's three columns
PANEL = NAMES + BAR + VALUES
HEADING, CASE_HEADING, STAGE_HEADING = 64, 30, 22
ROW, THICKNESS, BETWEEN_CASES = 24, 14, 14
TRACK = "#f0f2f5"
COLOURS = {OURS: BLUE}
OTHERS = (GREY, "#e0a458", "#7fb5a6", "#c48bb4", "#a58e6f", "#8fb0e0", "#cf7c6b")
CAPTION = (
    "Bars are medians, lines reach from the 10th to the 90th percentile of the rounds. "
    "Each panel has its own scale."
)


@dataclass(frozen=True)
class Machine:
    """Everything about a machine that a timing depends on; `cpu` with its vector extensions."""

    device: str
    accelerator: str | None
    cpu: str
    threads: int
    system: str
    python: str
    torch: str
    cuda: str | None
    stae: str


@dataclass(frozen=True)
class Case:
    """What one call of a network is given: `batch` pictures of `width` x `height` pixels."""

    width: int
    height: int
    batch: int = 1

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, batch {self.batch}"


@dataclass(frozen=True)
class Spread:
    """A median over rounds with the 10th and the 90th percentile."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        p10, median, p90 = np.quantile(values, (0.1, 0.5, 0.9))
        return cls(float(median), float(p10), float(p90))


@dataclass(frozen=True)
class Timing:
    """One network's encoder or decoder in one case.

    `tflops` counts the operations of the network as defined, whatever its form really computes,
    per second in 10^12; `share` is that over the machine's own matrix product in the same round.
    `slowdown` is its time over the codec's in the same round. `memory_bytes` is what a call needs
    on the device beyond weights and inputs; None where torch does not report it.
    """

    network: str
    stage: str
    milliseconds: Spread
    images_per_second: Spread
    tflops: float
    share: Spread
    slowdown: Spread
    memory_bytes: int | None


@dataclass(frozen=True)
class MatmulRate:
    """The rate of one matrix product (rows, inner, columns), in 10^12 operations a second."""

    shape: tuple[int, int, int]
    tflops: Spread


@dataclass(frozen=True)
class CaseResult:
    """All networks in one case, timed in turn in the same `rounds`.

    `matmul` (rows, inner, columns) is the machine's fastest product in them, `matmuls` are all of
    them. `left_out` gives the reason for each network that could not be timed.
    """

    case: Case
    rounds: int
    matmul: tuple[int, int, int]
    matmul_tflops: Spread
    timings: Sequence[Timing]
    left_out: Mapping[str, str] = field(default_factory=dict)
    matmuls: Sequence[MatmulRate] = ()

    @property
    def networks(self) -> list[str]:
        return list(dict.fromkeys(timing.network for timing in self.timings))

    @property
    def stages(self) -> list[str]:
        return list(dict.fromkeys(timing.stage for timing in self.timings))


@dataclass(frozen=True)
class Report:
    """A whole benchmark."""

    machine: Machine
    architecture: str
    weights: str
    dtype: str
    unfused: str | None  # why a CUDA device runs without Triton kernels
    host_peak_bytes: int | None  # of the process that the codec ran in
    results: Sequence[CaseResult]
    versions: Mapping[str, str] = field(default_factory=dict)  # of libraries beside torch

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers."""
        return asdict(self)


def describe_machine(device: torch.device) -> Machine:
    """The machine as torch sees it; `accelerator` is None when the device is the CPU."""
    return Machine(
        device=str(device),
        accelerator=_accelerator_name(device),
        cpu=f"{_cpu_name()} ({torch.backends.cpu.get_cpu_capability()})",
        threads=torch.get_num_threads(),
        system=platform.platform(),
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda if device.type == "cuda" else None,
        stae=__version__,
    )


def host_peak_bytes() -> int | None:
    """The most memory that the process has used so far; None on Windows, which does not say."""
    try:
        resource = import_module("resource")
    except ModuleNotFoundError:
        return None
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _accelerator_name(device: torch.device) -> str | None:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return None if device.type == "cpu" else device.type


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def check_target(path: Path) -> None:
    """Checks that a chart can be written to a path, before anything is measured for it.

    Raises:
        UsageError: it does not end in .png, is a folder, or its folder is missing.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"`{path}` does not end in .png", "name such a file")
    if path.is_dir():
        raise UsageError(f"`{path}` is a folder", "name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"no folder `{path.parent}` for `{path.name}`", "create it first")


def draw(report: Report, path: Path) -> None:
    """Writes a PNG of images per second; CAPTION explains it, and scales start at zero.

    Raises:
        StaeError: the file cannot be written.
    """
    canvas = Canvas(
        2 * MARGIN + 2 * PANEL + GUTTER, HEADING + sum(map(_height, report.results)) + MARGIN
    )
    canvas.text((MARGIN, 26), "Images per second", 17)
    machine = report.machine
    device = machine.accelerator or f"the CPU, {machine.cpu}, {machine.threads} threads"
    where = f"{report.dtype} on {device}, torch {machine.torch}"
    canvas.text((MARGIN, 48), where, 11, FAINT)
    colours, top = _colours(report), HEADING
    for result in report.results:
        _case(canvas, result, top, colours)
        top += _height(result)
    canvas.text((MARGIN, top + 8), CAPTION, 10, FAINT)
    canvas.save(path, hint="give another file to `--plot`")


def _case(canvas: Canvas, result: CaseResult, top: int, colours: dict[str, str]) -> None:
    canvas.line([(MARGIN, top + 6), (canvas.width - MARGIN, top + 6)], TRACK)
    canvas.text((MARGIN, top + 22), str(result.case), 13)
    for index, stage in enumerate(result.stages):
        left = MARGIN + index * (PANEL + GUTTER)
        canvas.text((left + NAMES, top + CASE_HEADING + 12), stage, 11, FAINT)
        timings = [each for each in result.timings if each.stage == stage]
        _panel(canvas, timings, left, top + CASE_HEADING + STAGE_HEADING, colours)


def _panel(
    canvas: Canvas, timings: Sequence[Timing], left: int, top: int, colours: dict[str, str]
) -> None:
    longest = max(timing.images_per_second.p90 for timing in timings)
    for row, timing in enumerate(timings):
        middle = top + row * ROW + ROW // 2
        canvas.text((left + NAMES - 10, middle), timing.network, 12, INK, "rm")
        _bar(canvas, timing, left + NAMES, middle, BAR / longest, colours[timing.network])
        label = _figure(timing.images_per_second.median)
        canvas.text((left + NAMES + BAR + 10, middle), label, 12)
        if timing.network != OURS:  # from ratios within rounds, not from the medians shown
            ratio = f"{_figure(timing.slowdown.median)}x the time"
            canvas.text((left + PANEL, middle), ratio, 10, FAINT, "rm")


def _bar(canvas: Canvas, timing: Timing, left: int, middle: int, scale: float, colour: str) -> None:
    speed, half = timing.images_per_second, THICKNESS / 2
    canvas.box((left, middle - half), (left + BAR, middle + half), TRACK)
    end = left + max(speed.median * scale, 1)
    canvas.box((left, middle - half), (end, middle + half), colour)
    low, high = left + speed.p10 * scale, left + speed.p90 * scale
    canvas.line([(low, middle), (high, middle)], INK)
    for x in (low, high):
        canvas.line([(x, middle - 3), (x, middle + 3)], INK)


def _height(result: CaseResult) -> int:
    return CASE_HEADING + STAGE_HEADING + len(result.networks) * ROW + BETWEEN_CASES


def _colours(report: Report) -> dict[str, str]:
    others = dict.fromkeys(each for one in report.results for each in one.networks if each != OURS)
    return COLOURS | dict(zip(others, cycle(OTHERS), strict=False))


def _figure(value: float) -> str:
    """Three significant digits, all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"

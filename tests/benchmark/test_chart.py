"""The chart: a readable PNG for any set of networks and cases, or an error that names the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stae_cli.benchmark.report import (
    COLOURS,
    OURS,
    Case,
    CaseResult,
    Report,
    Spread,
    Timing,
    check_target,
    describe_machine,
    draw,
)
from stae_cli.errors import StaeError, UsageError
from stae_cli.images.drawing import SCALE


def timing(network: str, stage: str, speed: float) -> Timing:
    return Timing(
        network,
        stage,
        milliseconds=Spread.of([1000 / speed]),
        images_per_second=Spread(speed, 0.9 * speed, 1.05 * speed),
        tflops=0.1,
        share=Spread.of([0.5]),
        slowdown=Spread.of([2.0]),
        memory_bytes=None,
    )


def report(networks: dict[str, float], cases: int = 1) -> Report:
    timings = tuple(timing(n, s, v) for n, v in networks.items() for s in ("encoder", "decoder"))
    result = CaseResult(Case(64, 64), 3, (64, 64, 64), Spread.of([0.1]), timings)
    machine = describe_machine(torch.device("cpu"))
    return Report(machine, "f8c16", "seeded", "float32", None, None, (result,) * cases)


def columns_of(path: Path, colour: str) -> np.ndarray:
    """Where along the width a colour shows in the left half."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    found = (pixels[:, : pixels.shape[1] // 2] == wanted).all(-1).any(0)
    return np.flatnonzero(found)


def test_bars_are_as_long_as_speeds_are_high(tmp_path: Path) -> None:
    fast, slow = tmp_path / "fast.png", tmp_path / "slow.png"
    draw(report({OURS: 8.0, "reference": 8.0}), fast)
    draw(report({OURS: 4.0, "reference": 8.0}), slow)
    lengths = [np.ptp(columns_of(path, COLOURS[OURS])) for path in (fast, slow)]
    assert lengths[1] == pytest.approx(lengths[0] / 2, abs=2 * SCALE)


@pytest.mark.parametrize("cases", [1, 3])
def test_each_case_adds_a_row_of_panels(tmp_path: Path, cases: int) -> None:
    path = tmp_path / "chart.png"
    draw(report({OURS: 1234.5, "reference": 0.004}, cases), path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.height > 100 * SCALE * cases
        assert image.width > 800 * SCALE


def test_more_networks_than_colours(tmp_path: Path) -> None:
    draw(report({OURS: 1.0} | {f"other-{i}": 1.0 for i in range(9)}), tmp_path / "chart.png")


def test_a_target_that_cannot_be_written_is_seen_early(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        check_target(tmp_path / "absent" / "chart.png")
    with pytest.raises(UsageError, match=r"does not end in \.png"):
        check_target(tmp_path / "chart.svg")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        check_target(tmp_path / "folder.png")
    check_target(tmp_path / "chart.PNG")


def test_a_failure_to_write_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(StaeError, match="cannot write"):
        draw(report({OURS: 1.0}), tmp_path / "absent" / "chart.png")

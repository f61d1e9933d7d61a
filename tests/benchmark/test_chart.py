"""The chart of a benchmark: panels, bars and figures of any set of networks and cases."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from stae_cli import charts
from stae_cli.benchmark.chart import NOTE, draw
from stae_cli.benchmark.report import (
    OURS,
    Case,
    CaseResult,
    Report,
    Spread,
    Timing,
    describe_machine,
)
from stae_cli.errors import StaeError
from tests.svg import shapes_of, texts_of, width_of


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


@pytest.mark.parametrize("cases", [1, 3])
def test_every_case_has_two_panels_with_a_bar_for_each_network(tmp_path: Path, cases: int) -> None:
    path = tmp_path / "chart.svg"
    draw(report({OURS: 1234.5, "reference": 0.004}, cases), path)
    found = texts_of(path)
    assert found.count("encoder, 64x64, batch 1") == found.count("decoder, 64x64, batch 1") == cases
    assert found.count("1,234") == found.count("0.00400") == 2 * cases  # images per second
    assert found.count("2.00x the time") == 2 * cases  # of the other network alone
    assert found.count(OURS) == found.count("reference") == 2 * cases
    for colour in (charts.BLUE, charts.GREY):
        assert len(shapes_of(path, fill=colour)) == 2 * cases
    assert {"Images per second", NOTE} <= set(found)
    assert any(text.startswith("float32 on the CPU") for text in found)


def test_bars_are_as_long_as_speeds_are_high(tmp_path: Path) -> None:
    path = tmp_path / "chart.svg"
    draw(report({OURS: 4.0, "reference": 8.0}), path)
    ours, other, whole = (
        width_of(shapes_of(path, fill=colour)[0])
        for colour in (charts.BLUE, charts.GREY, charts.TRACK)
    )
    assert ours == pytest.approx(other / 2, rel=1e-3)
    assert other == pytest.approx(whole / 1.05, rel=1e-3)  # the longest whisker ends the scale


def test_whiskers_reach_from_the_10th_to_the_90th_percentile(tmp_path: Path) -> None:
    path = tmp_path / "chart.svg"
    draw(report({OURS: 10.0}), path)
    whisker = shapes_of(path, stroke=charts.INK)[0]
    bar = shapes_of(path, fill=charts.BLUE)[0]
    assert width_of(whisker) == pytest.approx(0.15 * width_of(bar), rel=1e-2)


def test_more_networks_than_colours(tmp_path: Path) -> None:
    path = tmp_path / "chart.png"
    networks = {OURS: 1.0} | {f"other-{number}": 1.0 for number in range(9)}
    draw(report(networks), path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width == 2200
        assert image.height > 60 * len(networks)


def test_a_network_keeps_its_colour_where_others_are_left_out(tmp_path: Path) -> None:
    both, one = report({OURS: 2.0, "a": 1.0, "b": 1.0}), report({OURS: 2.0, "b": 1.0})
    results = (*both.results, *one.results)
    path = tmp_path / "chart.svg"
    draw(Report(both.machine, "f8c16", "seeded", "float32", None, None, results), path)
    assert [len(shapes_of(path, fill=colour)) for colour in charts.OTHERS[:2]] == [2, 4]


def test_a_failure_to_write_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(StaeError, match="cannot write"):
        draw(report({OURS: 1.0}), tmp_path / "absent" / "chart.png")

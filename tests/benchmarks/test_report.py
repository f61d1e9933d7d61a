"""The page shows every record there is: those of today, and those made before."""

import json
from functools import partial

import pytest

from benchmarks import report
from benchmarks.charts import COLOURS, STAGES, speed_by_threads, time_by_size
from benchmarks.record import RESULTS, ROOT
from stae_cli.charts import write
from tests.svg import shapes_of, texts_of

SPREAD = {"median": 2.0, "p10": 1.0, "p90": 3.0}
MACHINE = {
    "device": "cuda",
    "accelerator": "a card",
    "cpu": "a CPU",
    "threads": 2,
    "torch": "2.11",
    "python": "3.12",
    "stae": "0.1",
}
TIMING = {
    "network": "stae",
    "stage": "encoder",
    "milliseconds": SPREAD,
    "share": SPREAD,
    "slowdown": SPREAD,
    "memory_bytes": 10**9,
}
CASE = {
    "case": {"width": 64, "height": 64, "batch": 8},
    "timings": [TIMING, TIMING | {"stage": "decoder"}],
    "left_out": {"sdxl": "cuDNN does not like it"},
}
NETWORKS = {
    "commit": "abc",
    "machine": MACHINE,
    "dtype": "float16",
    "unfused": None,
    "results": [CASE],
    "versions": {"openvino": "2026.4"},
    "beyond_limits": {"openvino": "used more"},
    "failures": {"64x64, batch 9": "it hung"},
}
FORM = {
    "unfused because": None,
    "latents": {"largest": 0.003, "rms": 0.001, "relative": 0.0004},
    "pictures": {"largest": 0.003, "rms": 0.001, "relative": 0.0004},
    "same bytes alone": True,
    "time": {"encode": SPREAD, "decode": SPREAD},
}
AGREEMENT = {
    "commit": "abc",
    "machine": MACHINE,
    "side": 1024,
    "forms": {"float32, stae": FORM, "float16, unfused": FORM | {"time": {}}},
    "failures": {"float16, stae": "illegal address"},
}
PATH = {"commit": "abc", "runs": [], "failures": {"16 threads": "`stae bench` ended with 1"}}
FILES = {
    "commit": "abc",
    "threads": 2,
    "reading": {"codec alone": SPREAD, "stae": SPREAD, "codec alone over stae": SPREAD},
    "png writing": {"writer alone": SPREAD, "stae": SPREAD, "writer alone over stae": SPREAD},
    "mixed sizes": {
        command: {"mixed": SPREAD, "equal": SPREAD, "mixed over equal": SPREAD}
        for command in ("encode", "decode")
    },
    "memory": {"encode 2 photos": 500},
}


@pytest.fixture
def records(tmp_path):
    found = {"agreement-cuda": AGREEMENT, "networks-cuda": NETWORKS, "path-cuda": PATH}
    for name, result in (found | {"files-cpu": FILES}).items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    return tmp_path


def test_the_page_is_that_of_the_records():
    page = "\n".join([report.HEAD, *report.tables(RESULTS)])
    assert page == (RESULTS.parent / "README.md").read_text()


def test_every_record_is_on_the_page():
    held = {path.stem for path in RESULTS.glob("*.json")}
    shown = {path.stem for pattern in report.SECTIONS for path in RESULTS.glob(f"{pattern}.json")}
    assert held == shown


def test_all_that_was_measured_is_shown(records):
    page = "\n".join(report.tables(records))
    for words in (
        "| 64x64, 8 | encoder | stae | 2.00 | 1.00 to 3.00 | 200% | 2.00 | 1.00 |",
        "| 64x64, 8 | both | sdxl | left out: cuDNN does not like it |",
        "with torch 2.11, python 3.12, stae 0.1, openvino 2026.4.",
        "- openvino used more.",
        "- 64x64, batch 9: it hung",
        "| float32, stae | 0.04% | 3.0e-03 | 0.04% | 3.0e-03 | the same | 2.00 (1.00 to 3.00) |",
        "- float16, stae: illegal address",
        "- 16 threads: `stae bench` ended with 1",
        "| reading 1-megapixel JPEGs | simplejpeg alone, speed | 2.00 (1.00 to 3.00) |",
        "| encode 2 photos | 500 |",
    ):
        assert words in page


def test_records_of_one_kind_of_device_alone(records):
    page = "\n".join(report.tables(records, "cuda"))
    assert "## The network" in page
    assert "## Files" not in page


def test_charts_and_the_page_are_written(records, tmp_path):
    (records / "networks-cpu.json").write_text((RESULTS / "networks-cpu.json").read_text())
    (records / "path-cuda.json").write_text((RESULTS / "path-cpu.json").read_text())
    report.main(["--results", str(records), "--page", str(tmp_path / "page.md")])
    drawn = {path.name for path in records.glob("*.png")}
    assert drawn == {"networks-cuda.png", "networks-cpu.png", "path-cuda.png"}
    assert "](results/networks-cuda.png)" in (tmp_path / "page.md").read_text()


def test_a_chart_has_a_line_for_each_network_and_batch(tmp_path):
    more = [TIMING | {"network": "taesd"}, TIMING | {"network": "taesd", "stage": "decoder"}]
    cases = [
        {"case": {"width": side, "height": side, "batch": batch}, "timings": CASE["timings"] + more}
        for side in (256, 512)
        for batch in (1, 8)
    ]
    path = tmp_path / "chart.svg"
    write(path, partial(time_by_size, NETWORKS | {"results": cases}), hint="")
    for name in ("stae", "taesd"):
        lines = [s for s in shapes_of(path, stroke=COLOURS[name]) if len(s) == 2]
        assert len(lines) == 2 * 2  # stages and batches
    found = texts_of(path)
    assert {"encoder", "decoder", "stae", "TAESD", "256", "512", "a card"} <= {*found}
    assert found.count("TAESD") == 1


def test_a_chart_has_a_line_for_each_stage(tmp_path):
    path = tmp_path / "chart.svg"
    record = json.loads((RESULTS / "path-cpu.json").read_text())
    write(path, partial(speed_by_threads, record), hint="")
    alone = {f"{stage} alone" for stage in STAGES if stage != "whole"}
    assert {"encode", "decode", "whole"} | alone <= {*texts_of(path)}
    for colour in STAGES.values():
        lines = [line for line in shapes_of(path, stroke=colour) if len(line) == 3]
        assert len(lines) == 2 + 1  # of the commands, and in the legend


def test_no_chart_is_drawn_of_a_record_without_results(records, tmp_path):
    (records / "networks-cuda.json").write_text(json.dumps(NETWORKS | {"results": []}))
    report.main(["--results", str(records), "--page", str(tmp_path / "page.md")])
    assert list(records.glob("*.png")) == []


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md"])
def test_the_tables_of_engines_are_those_of_the_records(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    expected = []
    for kind, name in (("AVX-512", "networks-cpu"), ("AVX2", "networks-avx2")):
        for one in json.loads((RESULTS / f"{name}.json").read_text())["results"]:
            case = one["case"]
            for stage in ("encoder", "decoder") if case["batch"] == 1 else ():
                timed = {t["network"]: t for t in one["timings"] if t["stage"] == stage}
                expected.append(row_of(kind, case["width"], stage, timed, share="limit" in text))
    assert [line for line in text.splitlines() if line.startswith("| AVX")] == expected


def row_of(kind, side, stage, timed, *, share):
    ours = timed["stae"]
    cells = [kind, f"{side}x{side}", stage, f"{ours['milliseconds']['median']:.0f} ms"]
    cells += [f"{ours['share']['median']:.0%}"] * share
    for other in ("reference", "compile", "onnxruntime", "openvino"):
        beyond = kind == "AVX2" and other == "onnxruntime"  # which used AVX-512
        cells.append("-" if beyond else f"{timed[other]['slowdown']['median']:.2f}x")
    return f"| {' | '.join(cells)} |"

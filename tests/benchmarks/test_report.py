"""The report shows every record there is: those of today, and those made before."""

import json

import pytest

from tests.benchmarks.scripts import FOLDER, script

SPREAD = {"median": 2.0, "p10": 1.0, "p90": 3.0}
MACHINE = {
    "device": "cuda", "accelerator": "a card", "cpu": "a CPU", "threads": 2, "torch": "2.11",
    "python": "3.12", "stae": "0.1",
}  # fmt: skip
KERNEL = {"name": "void at::native::gelu<c10::Half>", "microseconds": 900.0, "count": 8.0}
STAGES = {
    "commit": "abc", "machine": MACHINE, "case": {"width": 64, "height": 64, "batch": 8},
    "dtype": "float16", "failures": {"latency": "illegal address"}, "unstarted": ["pictures"],
    "software": {"cudnn": 91200, "state": {"name": "a card"}},
    "ceilings": {
        "copy": {"bytes": 2 << 30, "gigabytes_per_second": SPREAD},
        "conv": {"shape": [8, 512, 128, 128], "tflops": SPREAD},
        "matmuls": [{"shape": [8192, 8192, 8192], "tflops": SPREAD}],
    },
    "kernels": {"stae encode": {
        "milliseconds": SPREAD, "kernel_milliseconds": 1.5, "started": 9.0, "kernels": [KERNEL],
    }},
    "chunks": {"4096 encode": SPREAD, "4096 decode": SPREAD, "8192 encode": SPREAD},
}  # fmt: skip
TIMING = {
    "network": "stae", "stage": "encoder", "milliseconds": SPREAD, "share": SPREAD,
    "slowdown": SPREAD, "memory_bytes": 10**9,
}  # fmt: skip
CASE = {
    "case": {"width": 64, "height": 64, "batch": 8}, "timings": [TIMING],
    "left_out": {"sdxl": "cuDNN does not like it"},
    "matmuls": [{"shape": [8192, 8192, 8192], "tflops": SPREAD}],
}  # fmt: skip
NETWORKS = {
    "commit": "abc", "machine": MACHINE, "dtype": "float16", "unfused": None, "results": [CASE],
    "failures": {"64x64, batch 9": "it hung"}, "unstarted": [],
}  # fmt: skip
SHARING = {
    "commit": "abc", "cores": 16, "failures": {},
    "runs": [{
        "processes": 2, "devices": "cuda:0,cuda:0", "start_seconds": 3.0,
        "large": {"images": 9, "seconds": 4.0, "images_per_second": 500.0},
        "small": {"images": 9, "seconds": 3.0, "images_per_second": None},
    }],
}  # fmt: skip
PATH = {"commit": "abc", "runs": [], "failures": {"16 threads": "`stae bench` ended with 1"}}


@pytest.fixture
def records(tmp_path):
    found = {"stages": STAGES, "networks": NETWORKS, "sharing": SHARING, "path": PATH}
    for name, result in found.items():
        (tmp_path / f"{name}-cuda.json").write_text(json.dumps(result))
    return tmp_path


def test_the_page_is_that_of_the_records():
    assert script("report").page(FOLDER / "results") == (FOLDER / "README.md").read_text()


def test_all_that_was_measured_is_shown(records):
    page = script("report").page(records)
    for words in (
        "| copy of 2.1 GB, read and written | 2.00 GB/s | 1.00 to 3.00 |",
        "| product 8192x8192x8192 | 2.00 TFLOP/s |",
        "| 3x3 convolution of 8x512x128x128 |",
        "| 4096 | 2.00 | 2.00 |",
        "| 8192 | 2.00 |  |",
        "| `void at::native::gelu<c10::Half>` | 900 | 8.00 |",
        "cudnn: 91200",
        "- latency: illegal address",
        "- pictures: no time was left",
        "| 64x64, 8 | both | sdxl | left out: cuDNN does not like it |",
        "torch's own products, in TFLOP/s: 8192x8192x8192 2.00.",
        "- 64x64, batch 9: it hung",
        "| cuda:0,cuda:0 | 3.0 s | 500 | too quick to tell |",
        "- 16 threads: `stae bench` ended with 1",
    ):
        assert words in page


def test_older_records_name_who_was_left_out_alone(records):
    older = NETWORKS | {"results": [CASE | {"left_out": ["taesd"]}]}
    del older["failures"], older["unstarted"]
    (records / "networks-cuda.json").write_text(json.dumps(older))
    assert "| 64x64, 8 | both | taesd | left out: out of memory |" in script("report").page(records)


def test_the_table_holds_the_same(records):
    text = script("table").table(records, "cuda", ("stages", "networks", "path", "sharing"))
    for words in (
        "copy: 2.00 (1.00-3.00) GB/s",
        "      900 us   8.0x gelu<Half>",
        "FAILED latency: illegal address",
        "no time for pictures",
        "64x64 b8 enc | stae 2.00 ms 200% 1.00 GB",
        "64x64 b8: sdxl left out: cuDNN does not like it",
        "2 processes, 16 cores: large 500 images/s of 9, start 3.0 s",
    ):
        assert words in text


def test_an_odd_record_hides_no_other(records):
    (records / "networks-cuda.json").write_text('{"results": [7]}')
    text = script("table").table(records, "cuda", ("networks", "stages", "numbers"))
    assert "networks-cuda.json is not as expected: " in text
    assert "copy: " in text
    assert "== numbers (nothing recorded)" in text


def test_charts_are_drawn_of_old_and_new_records(records):
    pytest.importorskip("matplotlib")
    older = (FOLDER / "results" / "networks-cpu.json").read_text()
    (records / "networks-older.json").write_text(older)
    script("plots").draw_all(records)
    drawn = {path.name for path in records.glob("*.png")}
    assert drawn == {"networks-cuda.png", "networks-older.png", "stages-cuda.png"}

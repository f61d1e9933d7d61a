"""The parts of `stages.py`: what fails is recorded, and neither stops nor changes the rest."""

import pytest
import torch

from stae_cli import StupidAE
from stae_cli.benchmark.report import Case
from stae_cli.codec import inference
from tests.benchmarks.scripts import script
from tests.seeded import TINY, seeded_model


@pytest.fixture
def stages(monkeypatch):
    monkeypatch.setattr("stae_cli.benchmark.stopwatch.SHORTEST_SAMPLE", 0.001)
    return script("stages")


@pytest.fixture
def subject(stages):
    model: StupidAE = seeded_model(TINY)
    return stages.Subject(model, torch.device("cpu"), torch.float32, Case(16, 16, 2), seconds=0)


def failing(_given):
    raise RuntimeError("misaligned address\nat line 7")


class OutOfResourcesError(Exception):
    """As Triton's, which is no RuntimeError."""


def too_large(_given):
    raise OutOfResourcesError("out of resource: shared memory")


def test_what_does_not_run_is_left_out_of_the_rounds(subject):
    given = [torch.zeros(3)]
    tasks = {"bad": (failing, given), "large": (too_large, given), "good": (torch.neg, given)}
    assert set(subject.timed(tasks)) == {"good"}
    assert subject.failures == {
        "bad": "misaligned address", "large": "out of resource: shared memory",
    }  # fmt: skip


def test_no_products_are_timed_where_triton_makes_none(stages, subject):
    assert stages.tiles(subject) == {}
    assert subject.failures == {}


def test_a_form_that_fails_does_not_stop_the_others(subject, monkeypatch):
    forms = {"stae": None, "unfused": None, "broken": None}
    monkeypatch.setattr("subject.FORMS", forms)  # `broken` is no network
    found = subject.of_each_call("latency", lambda function, given: {"ok": len(given) > 0})
    assert set(found) == {
        f"{name} {stage}"
        for name in ("stae", "unfused", "reference")
        for stage in ("encode", "decode")
    }
    assert set(subject.failures) == {"latency of broken"}


def test_a_part_that_fails_is_recorded(stages, subject):
    assert stages.measured("chunks", failing, subject) == {}
    assert subject.failures == {"chunks": "misaligned address"}
    assert stages.measured("other", lambda _: {"found": 1}, subject) == {"other": {"found": 1}}


def test_chunks_are_tried_and_put_back(stages, subject, monkeypatch):
    before = dict(inference.ROWS)
    found = stages.chunks(subject)
    assert set(found) == {f"{n} {s}" for n in stages.FEW_CHUNKS for s in ("encode", "decode")}
    assert before == inference.ROWS
    monkeypatch.setattr(stages, "contender", None)
    assert stages.measured("chunks", stages.chunks, subject) == {}
    assert before == inference.ROWS


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # as on a device
def test_products_are_tried_with_tiles_of_all_kinds(subject, monkeypatch):
    """In Triton's interpreter, where they take no time that means anything."""
    pytest.importorskip("triton")
    from stae_cli.codec.cuda.products import configurations

    monkeypatch.setitem(inference.ROWS, "cuda", 16)
    for product, rows, adds in script("tiles").products(subject).values():
        for tiles in configurations(adds=adds):
            product(rows[0], tiles=tiles)


def test_kernels_of_a_call_are_told_by_their_time(stages, subject):
    square = torch.ones(64, 64)
    found = stages.costliest(subject.device, lambda: square @ square + 1)
    names = [kernel["name"] for kernel in found["kernels"]]
    assert {"aten::mm", "aten::add"} <= set(names)
    times = [kernel["microseconds"] for kernel in found["kernels"]]
    assert times == sorted(times, reverse=True)
    assert found["kernel_milliseconds"] * 1000 >= sum(times) * 0.999
    assert {k["count"] for k in found["kernels"] if k["name"] == "aten::mm"} == {1.0}


def test_results_go_where_the_environment_says(monkeypatch, tmp_path):
    record = script("record")
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setenv("PATH", "")
    parser = record.argparse.ArgumentParser()
    record.add_options(parser)
    record.recorder(parser.parse_args([]))("found", {"answer": 42})
    (file,) = (tmp_path / "out").iterdir()
    assert record.json.loads(file.read_text()) == {"commit": "unknown", "answer": 42}

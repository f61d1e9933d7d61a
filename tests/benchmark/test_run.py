"""What a benchmark reports: every network in every case, with figures that agree with each other.

Nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from stae_cli.benchmark import contenders, rig
from stae_cli.benchmark import run as running
from stae_cli.benchmark.apart import ProcessError
from stae_cli.benchmark.contenders import Contender, seeded_model
from stae_cli.benchmark.report import Case, CaseResult, Report, Spread
from stae_cli.benchmark.rig import Entrant, Rig
from stae_cli.benchmark.run import run
from stae_cli.benchmark.stopwatch import FEWEST_ROUNDS, rounds_of
from stae_cli.codec.codec import Codec
from stae_cli.errors import StaeError, UsageError
from stae_cli.network.flops import count
from stae_cli.network.stupid_ae import StupidAE
from tests.rigs import keep_here
from tests.seeded import TINY
from tests.seeded import seeded_model as seeded_tiny

CASES = [Case(32, 24), Case(16, 16, batch=3)]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_here(monkeypatch)


@pytest.fixture(scope="module")
def report() -> Report:
    with pytest.MonkeyPatch.context() as patch:
        keep_here(patch)
        return run(
            seeded_tiny(TINY), CASES, weights="tiny", against=["reference"], device="cpu", seconds=0
        )


def test_every_network_has_both_stages_in_every_case(report: Report) -> None:
    assert [result.case for result in report.results] == CASES
    for result in report.results:
        found = [(timing.network, timing.stage) for timing in result.timings]
        stages = ("encoder", "decoder")
        assert found == [(name, stage) for name in ("stae", "reference") for stage in stages]


def test_there_are_three_rounds_even_without_time(report: Report) -> None:
    assert {result.rounds for result in report.results} == {FEWEST_ROUNDS}


@pytest.mark.parametrize("index", range(len(CASES)))
def test_figures_agree_with_each_other(report: Report, index: int) -> None:
    result = report.results[index]
    cost = count(TINY, result.case.width, result.case.height)
    for timing in result.timings:
        flops = getattr(cost, timing.stage).flops.total * result.case.batch
        seconds = timing.milliseconds.median / 1000
        assert timing.images_per_second.median == pytest.approx(result.case.batch / seconds)
        assert timing.tflops == pytest.approx(flops / seconds / 1e12)
        assert timing.share.median > 0
        for spread in (timing.milliseconds, timing.images_per_second, timing.slowdown):
            assert spread.p10 <= spread.median <= spread.p90


def test_ours_is_the_measure_of_the_others(report: Report) -> None:
    for result in report.results:
        ours, others = result.timings[:2], result.timings[2:]
        assert all(timing.slowdown == Spread(1, 1, 1) for timing in ours)
        assert all(timing.slowdown.median > 0 for timing in others)


def test_the_report_says_what_it_ran_on_and_serialises(report: Report) -> None:
    found = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert found["machine"]["device"] == "cpu"
    assert found["machine"]["accelerator"] is None
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert (found["architecture"], found["weights"]) == (TINY.describe(), "tiny")
    assert found["dtype"] == "float32"
    assert found["results"][1]["case"] == {"width": 16, "height": 16, "batch": 3}
    assert all(each["memory_bytes"] is None for each in found["results"][0]["timings"])


def test_the_machines_own_speed_is_that_of_the_faster_product(report: Report) -> None:
    for result in report.results:
        assert result.matmul in ((64, 64, 64), (128, 32, 64))
        assert result.matmul_tflops.median > 0


def test_bfloat16_and_peers_run_through_the_same_rounds() -> None:
    pytest.importorskip("diffusers", exc_type=ImportError)
    report = run(
        seeded_tiny(TINY),
        [Case(16, 16)],
        weights="tiny",
        against=["taesd", "taesd"],
        device="cpu",
        dtype=torch.bfloat16,
        seconds=0,
    )
    assert report.dtype == "bfloat16"
    assert [timing.network for timing in report.results[0].timings] == ["stae"] * 2 + ["taesd"] * 2


def test_time_is_spent_in_whole_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("stae_cli.benchmark.stopwatch.monotonic", lambda: next(clock))
    rounds = rounds_of({"one": lambda: 1.0, "other": lambda: 2.0}, seconds=6)
    assert len(rounds) > FEWEST_ROUNDS
    assert all(each == {"one": 1.0, "other": 2.0} for each in rounds)


def test_rounds_are_shuffled() -> None:
    orders = [tuple(each) for each in rounds_of(dict.fromkeys("abcd", float), seconds=0)]
    assert len(set(orders)) > 1


def test_nothing_of_torch_is_left_changed() -> None:
    model = seeded_tiny(TINY)
    state = torch.random.get_rng_state()
    tf32 = torch.backends.cudnn.allow_tf32
    run(model, [Case(8, 8)], weights="tiny", against=["reference"], device="cpu", seconds=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.backends.cudnn.allow_tf32 == tf32
    assert torch.is_grad_enabled()


def test_seeded_models_are_alike_and_disturb_no_random_numbers() -> None:
    state = torch.random.get_rng_state()
    first, second = seeded_model(), seeded_model()
    assert torch.equal(torch.random.get_rng_state(), state)
    others = second.state_dict()
    assert all(torch.equal(tensor, others[name]) for name, tensor in first.state_dict().items())


def test_requests_that_make_no_sense_fail_before_anything_is_timed() -> None:
    model = seeded_tiny(TINY)

    def refuse(case: Case) -> None:
        raise AssertionError(f"timed {case}")

    with pytest.raises(UsageError, match="not a multiple of 8"):
        run(model, [Case(16, 16), Case(20, 16)], weights="tiny", on_case=refuse)
    with pytest.raises(UsageError, match="unknown network `flux`"):
        run(model, [Case(16, 16)], weights="tiny", against=["flux"], on_case=refuse)


def test_a_case_that_does_not_fit_into_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> CaseResult:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(running, "_rounds", exhausted)
    with pytest.raises(StaeError, match="out of memory at 16x16, batch 2") as raised:
        run(seeded_tiny(TINY), [Case(16, 16, 2)], weights="tiny", device="cpu")
    assert "--batch" in raised.value.hint


def run_without_time(against: list[str]) -> Report:
    return run(
        seeded_tiny(TINY), CASES, weights="tiny", against=against, device="cpu", seconds=0
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError(), "out of memory"),
        (RuntimeError("cuDNN: not supported\nat line 7"), "cuDNN: not supported"),
        (NotImplementedError(), "NotImplementedError"),
    ],
)
def test_a_network_that_does_not_run_is_left_out(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError, reason: str
) -> None:
    real = Rig._warmed_up

    def failing(rig: Rig, contender: Contender) -> Iterator[Entrant]:
        encoder, decoder = real(rig, contender)
        yield encoder
        if contender.name == "reference":
            raise error
        yield decoder

    monkeypatch.setattr(Rig, "_warmed_up", failing)
    for result in run_without_time(["reference", "unfused"]).results:
        assert result.left_out == {"reference": reason}
        assert [timing.network for timing in result.timings] == ["stae"] * 2 + ["unfused"] * 2


def test_a_network_that_cannot_be_made_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> Codec:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(contenders, "VARIANTS", {"other": failing})
    for result in run_without_time(["other", "reference"]).results:
        assert result.left_out == {"other": "no kernel image"}


@pytest.mark.parametrize("stage", ["encode", "decode"])
def test_a_form_that_computes_something_else_is_left_out(
    monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    real = getattr(StupidAE, stage)
    monkeypatch.setattr(StupidAE, stage, lambda model, given: real(model, given) + 0.01)
    for result in run_without_time(["reference"]).results:
        what = {"encode": "latents", "decode": "pixels"}[stage]
        assert f"its {what} differ from those of stae by" in result.left_out["reference"]


def fail_in_rounds(monkeypatch: pytest.MonkeyPatch, network: str) -> None:
    """Lets a network's samples fail from its second round on."""
    real, seen = Rig.sample, Counter[str]()

    def sample(rig: Rig, key: tuple[str, object]) -> float:
        seen[key[0]] += 1
        if key[0] == network and seen[network] > 2:
            raise RuntimeError("misaligned address")
        return real(rig, key)

    monkeypatch.setattr(Rig, "sample", sample)


def test_a_network_that_fails_later_is_left_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_in_rounds(monkeypatch, "reference")
    first, _ = run_without_time(["reference"]).results
    assert first.left_out == {"reference": "misaligned address"}
    assert [timing.network for timing in first.timings] == ["stae"] * 2
    assert first.rounds == FEWEST_ROUNDS


def test_the_codecs_own_failure_is_none_to_pass_over(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_in_rounds(monkeypatch, "stae")
    with pytest.raises(RuntimeError, match="misaligned address"):
        run_without_time(["reference"])


def test_a_process_that_dies_takes_its_network_alone_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Rig.prepare

    def dying(rig: Rig, name: str) -> list[Entrant]:
        if name == victim:
            raise ProcessError(f"the process that timed {name} ended with SIGKILL")
        return real(rig, name)

    monkeypatch.setattr(Rig, "prepare", dying)
    victim = "reference"
    for result in run_without_time(["reference"]).results:
        assert "ended with SIGKILL" in result.left_out["reference"]
    victim = "stae"
    with pytest.raises(StaeError, match="timed stae ended with SIGKILL"):
        run_without_time(["reference"])


def test_each_product_is_reported(report: Report) -> None:
    for result in report.results:
        rates = {each.shape: each.tflops.median for each in result.matmuls}
        assert set(rates) == {(64, 64, 64), (128, 32, 64)}
        assert rates[result.matmul] == max(rates.values()) == result.matmul_tflops.median


def test_each_case_has_a_codec_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers that one keeps on CUDA would hide the memory that the next case takes."""
    met: list[object] = []
    real = rig.contender

    def noted(*given: object) -> Contender:
        made = real(*given)
        met.append(made.encode.__self__)
        return made

    monkeypatch.setattr(rig, "contender", noted)
    run_without_time([])
    assert len(met) == len(CASES)
    assert met[0] is not met[1]


def test_a_missing_library_is_an_error_before_anything_is_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setattr(running, "_run_case", None)
    with pytest.raises(StaeError, match="needs diffusers"):
        run_without_time(["sdxl"])

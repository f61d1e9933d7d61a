"""Engines beside the codec: their numbers, the dtypes that they lack, and what they need."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from stae_cli.benchmark import engines
from stae_cli.benchmark.engines import ENGINES, check_engine
from stae_cli.benchmark.report import Case, Report
from stae_cli.benchmark.run import run
from stae_cli.checkpoints import onnx
from stae_cli.errors import StaeError
from stae_cli.network.architecture import Architecture
from tests.rigs import keep_here
from tests.seeded import seeded_model

SMALL = Architecture("small", width=32, encoder_blocks=1, decoder_pairs=1, head="pixel_shuffle")
CPU = torch.device("cpu")


def timed(against: str, dtype: torch.dtype = torch.float32) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        keep_here(patch)
        return run(
            seeded_model(SMALL),
            [Case(32, 16, batch=2), Case(8, 8)],
            weights="small",
            against=[against],
            device="cpu",
            dtype=dtype,
            seconds=0,
        )


def test_engines_are_timed_when_their_numbers_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """One test, since the export takes seconds; it is tested by itself elsewhere."""
    pytest.importorskip("onnxscript")
    model = seeded_model(SMALL)
    made = onnx.encoder_onnx(model), onnx.decoder_onnx(model)
    monkeypatch.setattr(engines, "encoder_onnx", lambda _: made[0])
    monkeypatch.setattr(engines, "decoder_onnx", lambda _: made[1])
    if find_spec("onnxruntime"):
        check_timed("onnxruntime", torch.float32)
    if find_spec("openvino"):
        check_timed("openvino", torch.float32)
        check_timed("openvino", torch.bfloat16)


def check_timed(name: str, dtype: torch.dtype) -> None:
    report = timed(name, dtype)
    for result in report.results:
        assert result.left_out == {}
        assert [each.network for each in result.timings] == ["stae"] * 2 + [name] * 2
    found = json.loads(json.dumps(report.as_json()))
    assert import_module(name).__version__.startswith(found["versions"][name])


def test_compiled_functions_are_timed_after_they_are_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the backend that compiles nothing: the real one takes half a minute."""
    found: list[bool] = []
    real = torch.compile

    def quick(function: Callable[[Tensor], Tensor], *, dynamic: bool) -> Callable[..., Tensor]:
        found.append(dynamic)
        return real(function, dynamic=dynamic, backend="eager")

    monkeypatch.setattr(torch, "compile", quick)
    report = timed("compile")
    assert found == [False] * 4  # both halves in both cases
    for result in report.results:
        assert result.left_out == {}
        assert [each.network for each in result.timings] == ["stae"] * 2 + ["compile"] * 2


@pytest.mark.parametrize(
    ("name", "dtype"), [("onnxruntime", torch.bfloat16), ("openvino", torch.float16)]
)
def test_what_an_engine_lacks_is_said(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(RuntimeError, match=str(dtype).removeprefix("torch.")):
        ENGINES[name](seeded_model(SMALL), CPU, dtype)


@pytest.mark.parametrize("library", ["onnxruntime", "openvino", "onnx"])
def test_a_missing_library_is_named_with_what_to_install(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    name = "onnxruntime" if library == "onnx" else library
    if library == "onnx":
        pytest.importorskip("onnxruntime")
    with pytest.raises(StaeError, match=f"needs {library}") as raised:
        check_engine(name)
    assert "pip install 'stae[engines]'" in raised.value.hint

"""ONNX files: the plain module's numbers in any batch and size, and names to rely on."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from shutil import copytree as copied
from typing import Any

import numpy as np
import pytest
import torch

from stae_cli.checkpoints.checkpoint import write_checkpoint
from stae_cli.checkpoints.onnx import export_onnx
from stae_cli.errors import StaeError
from stae_cli.network.architecture import Architecture, SecondStage
from stae_cli.network.stupid_ae import StupidAE
from tests.seeded import seeded_model

copytree = partial(copied, dirs_exist_ok=True)

# Every kind of layer, in as few as there can be.
SMALL = Architecture(
    "small", width=32, head_width=8, encoder_blocks=1, decoder_pairs=1, second=SecondStage(64)
)


@pytest.fixture
def model() -> StupidAE:
    return seeded_model(SMALL).requires_grad_(True)


def test_files_have_the_plain_modules_numbers_in_any_size(model: StupidAE, tmp_path: Path) -> None:
    """One test, since the export takes seconds."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    files = export_onnx(model, tmp_path, {"weights": "small"})
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert [path.name for path in files] == ["encoder.onnx", "decoder.onnx"]
    assert all(parameter.requires_grad for parameter in model.parameters())  # still
    sessions = [
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in files
    ]
    check_names(*sessions)
    for size in ((2, 3, 5), (1, 1, 1), (3, 4, 2)):
        check_numbers(model, *sessions, size)


def check_names(encoder: Any, decoder: Any) -> None:
    assert encoder.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert encoder.get_outputs()[0].shape[:2] == ["batch", 64]
    assert decoder.get_inputs()[0].shape == ["batch", 64, "height", "width"]
    assert decoder.get_outputs()[0].shape == ["batch", 3, "32*height", "32*width"]
    for session in (encoder, decoder):
        found = session.get_modelmeta().custom_metadata_map
        assert found == {"weights": "small", "architecture": SMALL.describe()}


def check_numbers(model: StupidAE, encoder: Any, decoder: Any, size: tuple[int, int, int]) -> None:
    batch, rows, columns = size
    image = torch.empty(batch, 3, 32 * rows, 32 * columns).uniform_(-1, 1)
    latents = torch.randn(batch, 64, rows, columns)
    with torch.no_grad():
        expected = model.encode(image).numpy(), model.decode(latents).numpy()
    (encoded,) = encoder.run(["latents"], {"image": image.numpy()})
    (decoded,) = decoder.run(["image"], {"latents": latents.numpy()})
    np.testing.assert_allclose(encoded, expected[0], atol=1e-4)
    np.testing.assert_allclose(decoded, expected[1], atol=1e-4)


def test_a_missing_library_is_named(
    model: StupidAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(StaeError, match="needs onnx") as raised:
        export_onnx(model, tmp_path, {})
    assert "pip install 'stae[engines]'" in raised.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_conversion_leaves_nothing(
    stae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of a version of the exporter that did not know a layer."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from stae_cli.checkpoints import onnx

    small = tmp_path / "small.safetensors"
    model = seeded_model(SMALL)
    write_checkpoint(small, model.state_dict(), SMALL, {})
    command = ["weights", "convert", small, tmp_path / "onnx", "--to", "onnx"]
    ran = stae(*command, "--dtype", "float16")
    assert ran.code == 0, ran.err
    assert "onnxruntime computes the same numbers" in ran.err
    made = tmp_path / "onnx"
    assert sorted(path.name for path in made.iterdir()) == ["decoder.onnx", "encoder.onnx"]
    with monkeypatch.context() as patch:  # the files again, without the seconds of the exporter
        patch.setattr(onnx, "export_onnx", lambda _, folder, *a, **b: copytree(made, folder))
        patch.setitem(onnx.TOLERANCES, torch.float16, 1e-12)
        command[3] = tmp_path / "other"
        ran = stae(*command, "--dtype", "float16")
        ran.assert_fails(1, "computes something else", "--dtype float32")
    assert sorted(tmp_path.iterdir()) == [made, small]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert onnx.check_onnx(model, made, torch.float16) is None

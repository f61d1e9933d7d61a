"""Engines: what users would run the plain module with instead, each given the whole machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from stae_cli.checkpoints.onnx import IMAGE, LATENTS, check_exporter, decoder_onnx, encoder_onnx
from stae_cli.codec.device import dtype_name
from stae_cli.errors import StaeError
from stae_cli.network.stupid_ae import StupidAE

COMPILE, ONNXRUNTIME, OPENVINO = "compile", "onnxruntime", "openvino"


@dataclass(frozen=True)
class Engine:
    """Both halves of the network as an engine runs them; both take the `dtype`."""

    encode: Callable[[Tensor], object]
    decode: Callable[[Tensor], object]
    dtype: torch.dtype


def compiled(model: StupidAE, device: torch.device, dtype: torch.dtype) -> Engine:
    """The plain module through `torch.compile`, for one size at a time."""
    torch.compiler.reset()  # after several sizes it would stop compiling, and run the module
    plain = deepcopy(model).eval().to(device, dtype)
    encode, decode = (torch.compile(each, dynamic=False) for each in (plain.encode, plain.decode))
    return Engine(encode, decode, dtype)


def onnxruntime(model: StupidAE, _device: torch.device, dtype: torch.dtype) -> Engine:
    """The ONNX form in onnxruntime on the CPU.

    Raises:
        RuntimeError: another dtype than float32.
    """
    if dtype != torch.float32:
        raise RuntimeError(f"has no {dtype_name(dtype)} convolutions on the CPU")
    library = _library(ONNXRUNTIME)
    options = library.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors

    def half(content: bytes, name: str) -> Callable[[Tensor], object]:
        session = library.InferenceSession(content, options, providers=["CPUExecutionProvider"])

        def run(given: Tensor) -> object:
            with _runtime_errors():
                return session.run(None, {name: given.numpy()})[0]

        return run

    with _runtime_errors():
        return Engine(half(encoder_onnx(model), IMAGE), half(decoder_onnx(model), LATENTS), dtype)


def openvino(model: StupidAE, _device: torch.device, dtype: torch.dtype) -> Engine:
    """The ONNX form in OpenVINO on the CPU, which takes float32 whatever it computes in.

    Raises:
        RuntimeError: float16.
    """
    if dtype == torch.float16:
        raise RuntimeError("has no float16 on the CPU")
    library = _library(OPENVINO)
    core = library.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        # Otherwise it computes in bfloat16 where the CPU has it.
        "INFERENCE_PRECISION_HINT": "f32" if dtype == torch.float32 else "bf16",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }

    def half(content: bytes) -> Callable[[Tensor], object]:
        request = core.compile_model(
            core.read_model(content), "CPU", settings
        ).create_infer_request()

        def run(given: Tensor) -> object:
            return request.infer([given.numpy()], share_inputs=True, share_outputs=True)[0]

        return run

    return Engine(half(encoder_onnx(model)), half(decoder_onnx(model)), torch.float32)


ENGINES: Mapping[str, Callable[[StupidAE, torch.device, torch.dtype], Engine]] = {
    COMPILE: compiled,
    ONNXRUNTIME: onnxruntime,
    OPENVINO: openvino,
}
ON_CPU = (ONNXRUNTIME, OPENVINO)  # those that run there only


def check_engine(name: str) -> None:
    """Checks that the libraries of an engine are there.

    Raises:
        StaeError: one is missing or broken.
    """
    if name in ON_CPU:
        _library(name)
        check_exporter()


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise StaeError(
            f"comparing with {name} needs {error.name}", "run `pip install 'stae[engines]'`"
        ) from error
    except ImportError as error:
        raise StaeError(
            f"{name} is installed but cannot be imported: {error}",
            "run `pip install --upgrade 'stae[engines]'`",
        ) from error


@contextmanager
def _runtime_errors() -> Iterator[None]:
    """Turns onnxruntime's errors, which share no class, into RuntimeError.

    Raises:
        RuntimeError: with their message.
    """
    states = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    kinds = (states.Fail, states.RuntimeException, states.EPFail, states.NotImplemented)
    try:
        yield
    except kinds as error:
        raise RuntimeError(str(error)) from error

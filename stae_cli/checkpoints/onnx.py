"""ONNX: the encoder and the decoder as the plain module computes them, for other engines."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stae_cli.checkpoints.tensor_files import write_file
from stae_cli.errors import StaeError
from stae_cli.network.stupid_ae import StupidAE

ENCODER_FILE, DECODER_FILE = "encoder.onnx", "decoder.onnx"
IMAGE, LATENTS = "image", "latents"  # names of inputs and outputs
AXES = {0: "batch", 2: "height", 3: "width"}  # what may vary; names of the input's sizes
OPSET = 20
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-3}  # relative to what is above 1
TRACED = (2, 3, 5)  # batch, rows, columns: any that differ and are not 1


def export_onnx(
    model: StupidAE,
    folder: Path,
    metadata: Mapping[str, str],
    *,
    dtype: torch.dtype = torch.float32,
) -> tuple[Path, Path]:
    """Writes ENCODER_FILE and DECODER_FILE for any batch and size.

    The encoder takes `image` (B, 3, H, W) in [-1, 1] and gives `latents` (B, C, h, w); the decoder
    takes those and gives an `image` that is not clamped.

    Args:
        model: the reference model.
        folder: an existing one; files of these names in it are replaced.
        metadata: for both files, beside the architecture.
        dtype: of weights, inputs and outputs: float32 or float16. The norms stay in float32.

    Raises:
        StaeError: a library is missing.
        CheckpointError: a file cannot be written.
    """
    files = folder / ENCODER_FILE, folder / DECODER_FILE
    for path, export in zip(files, (encoder_onnx, decoder_onnx), strict=True):
        write_file(path, export(model, metadata, dtype=dtype))
    return files


def check_onnx(model: StupidAE, folder: Path, dtype: torch.dtype) -> float | None:
    """Compares both files with the reference model, on pictures of a size that was not traced.

    Returns:
        The largest difference, of what is near 1; None if onnxruntime is not installed.

    Raises:
        StaeError: it is larger than TOLERANCES allow.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return None
    network = deepcopy(model).cpu().float().eval()
    generator, factor = torch.Generator().manual_seed(0), model.architecture.downsample
    image = torch.rand(2, 3, 3 * factor, 4 * factor, generator=generator) * 2 - 1
    with torch.no_grad():
        latents = network.encode(image)
        pairs = [(ENCODER_FILE, image, latents), (DECODER_FILE, latents, network.decode(latents))]
    worst = 0.0
    for name, given, expected in pairs:
        session = onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: given.to(dtype).numpy()})
        apart = (torch.from_numpy(found).float() - expected).abs().max()
        worst = max(worst, float(apart / expected.abs().max().clamp_min(1.0)))
    if not worst <= TOLERANCES[dtype]:  # not a number, too
        raise StaeError(
            f"onnxruntime {onnxruntime.__version__} computes something else from the ONNX files: "
            f"it is off by {worst:.2g} (allowed {TOLERANCES[dtype]:.2g})",
            "try another version of torch, onnxscript or onnxruntime, or `--dtype float32`",
        )
    return worst


def encoder_onnx(
    model: StupidAE,
    metadata: Mapping[str, str] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> bytes:
    """The encoder as a file's bytes; see `export_onnx`.

    Raises:
        StaeError: a library is missing.
    """
    batch, rows, columns = TRACED
    factor = model.architecture.downsample
    given = torch.zeros(batch, 3, rows * factor, columns * factor, dtype=dtype)
    return _exported(model, "encoder", given, (IMAGE, LATENTS), metadata or {})


def decoder_onnx(
    model: StupidAE,
    metadata: Mapping[str, str] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> bytes:
    """The decoder as a file's bytes; see `export_onnx`.

    Raises:
        StaeError: a library is missing.
    """
    batch, rows, columns = TRACED
    given = torch.zeros(batch, model.architecture.channels, rows, columns, dtype=dtype)
    return _exported(model, "decoder", given, (LATENTS, IMAGE), metadata or {})


def check_exporter() -> None:
    """Checks that what the export needs is there.

    Raises:
        StaeError: a library is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401  # by torch's exporter
    except ModuleNotFoundError as error:
        raise StaeError(
            f"exporting to ONNX needs {error.name}", "run `pip install 'stae[engines]'`"
        ) from error


class _OneInput(nn.Module):
    """A stage of the network under an input's name: `nn.Sequential` calls its own `input`."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, given: Tensor) -> Tensor:
        return self.stage(given)


def _exported(
    model: StupidAE, stage: str, given: Tensor, names: tuple[str, str], metadata: Mapping[str, str]
) -> bytes:
    check_exporter()
    network = deepcopy(model).cpu().to(given.dtype).eval().requires_grad_(False)
    with _silent(), torch.no_grad():
        program = torch.onnx.export(
            _OneInput(network.get_submodule(stage)),
            (given,),
            input_names=names[:1],
            output_names=names[1:],
            # By automatic names: a name of one's own may not stand for multiples of 8.
            dynamic_shapes=(dict.fromkeys(AXES, torch.export.Dim.DYNAMIC),),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # as it is with `dynamo=True`
    proto = program.model_proto
    _name_sizes(proto)
    for key, value in {**metadata, "architecture": model.architecture.describe()}.items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString()


def _name_sizes(proto: Any) -> None:
    """Replaces the exporter's symbols, such as `s73`, by AXES, also in what follows from them."""
    graph = proto.graph
    sizes = graph.input[0].type.tensor_type.shape.dim
    names = {sizes[axis].dim_param: name for axis, name in AXES.items()}
    for value in (*graph.input, *graph.value_info, *graph.output):
        for size in value.type.tensor_type.shape.dim:
            for symbol, name in names.items():
                if size.dim_param:  # an assignment would erase a number
                    size.dim_param = size.dim_param.replace(symbol, name)


@contextmanager
def _silent() -> Iterator[None]:
    """Hides what the exporter says of libraries that this network does not use, and of itself."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)

"""The commands of `stae bench`: the network, the path from file to file, and training steps."""

# Not `from __future__ import annotations`: Typer would evaluate each string eight times.
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stae_cli.cli import options as opt
from stae_cli.cli.bench_report import (
    path_as_json,
    print_loop,
    print_network,
    print_path,
    print_warnings,
)
from stae_cli.cli.console import print_json, print_note
from stae_cli.cli.engine import local_codec
from stae_cli.errors import UsageError

if TYPE_CHECKING:
    from stae_cli.benchmark.report import Case
    from stae_cli.checkpoints.checkpoint import Checkpoint

SEEDED = "seeded"

measurement_option = partial(typer.Option, rich_help_panel="Measurement")

Sizes = Annotated[
    list[str],
    measurement_option(
        "--size", metavar="N|WxH", help="Pixels, multiples of 8 (or 32). Repeatable."
    ),
]
Batches = Annotated[
    list[int],
    measurement_option("--batch", metavar="N", min=1, help="Images in a call. Repeatable."),
]
Against = Annotated[
    str,
    measurement_option(
        metavar="NAME,...",
        help="Time these too: `reference` (the plain module), the engines that can run it "
        "(`compile`, `onnxruntime`, `openvino`), `sdxl`, `taesd`; on CUDA `unfused` (stae without "
        "its Triton kernels).",
        show_default=False,
    ),
]
Seconds = Annotated[
    float,
    measurement_option(metavar="S", min=0, help="Time for each size and batch; at least 3 rounds."),
]
Plot = Annotated[
    Path | None,
    measurement_option(metavar="FILE", help="Draw images per second: a .png or .svg file."),
]
Folders = Annotated[
    list[Path],
    typer.Argument(metavar="FOLDER", help="Folders of images, or images.", show_default=False),
]
Transformers = Annotated[
    list[str],
    measurement_option(
        "--transformer",
        metavar="SIZE",
        help="Transformer that `loop` trains: small (21 M parameters), base (85 M), large (302 M) "
        "or huge (629 M). Repeatable.",
    ),
]


def bench_network(
    size: Sizes = ["1024"],  # noqa: B006
    batch: Batches = [1],  # noqa: B006
    against: Against = "",
    seconds: Seconds = 20.0,
    plot: Plot = None,
    weights: opt.Weights = SEEDED,
    architecture: opt.ArchitectureName = None,
    device: opt.Device = "auto",
    dtype: opt.ComputeDtype = "auto",
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Measure speed, memory and share of the machine's limit, alone or against others.

    Inputs are on the device. Speed does not depend on the weights: they are seeded unless
    --weights is given.
    """
    from stae_cli.benchmark.chart import draw
    from stae_cli.benchmark.contenders import check_against
    from stae_cli.benchmark.run import run
    from stae_cli.charts import check_target

    device, cases, names = opt.parse_device(device), _cases(size, batch), opt.parse_names(against)
    check_against(names)
    _check_place(names, device)
    if plot is not None:
        check_target(plot)
    checkpoint = load_weights(weights, architecture)

    report = run(
        checkpoint.model(),
        cases,
        weights=checkpoint.name,
        against=names,
        device=device,
        dtype=opt.parse_dtype(dtype),
        seconds=seconds,
        on_case=partial(_announce, quiet),
    )
    if not quiet:
        print_warnings(report)
    if not (quiet or as_json):
        print_network(report)
    if plot is not None:
        draw(report, plot)
    if as_json:
        print_json(report.as_json())


def bench_path(
    folders: Folders,
    weights: opt.Weights = SEEDED,
    architecture: opt.ArchitectureName = None,
    device: opt.Device = "auto",
    dtype: opt.ComputeDtype = "auto",
    workers: opt.ReadersAndWriters = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Measure how fast the images of folders are encoded and decoded, from file to file.

    Also times reading, network and writing each alone, and says which of them is the slowest.
    """
    from tempfile import TemporaryDirectory  # slow to load, and the help does not need it

    from stae_cli.benchmark.path import time_path
    from stae_cli.benchmark.report import describe_machine
    from stae_cli.codec.device import dtype_name

    load = partial(load_weights, weights, architecture)
    codec, checkpoint = local_codec(load, opt.parse_device(device), dtype)
    with TemporaryDirectory(prefix="stae-bench-") as folder:
        times = time_path(folders, checkpoint, codec, workers=workers, folder=Path(folder))
    machine, computed_in = describe_machine(codec.device), dtype_name(codec.dtype)
    if as_json:
        print_json(path_as_json(times, machine, computed_in, checkpoint.name))
    elif not quiet:
        print_path(times, machine, computed_in)


def bench_loop(
    size: Sizes = ["1024"],  # noqa: B006
    batch: Batches = [1],  # noqa: B006
    transformer: Transformers = ["base"],  # noqa: B006
    seconds: Seconds = 20.0,
    weights: opt.Weights = SEEDED,
    architecture: opt.ArchitectureName = None,
    device: opt.Device = "auto",
    dtype: opt.ComputeDtype = "auto",
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Measure what encoding on the fly adds to a transformer's training step.

    Says whether caching latents pays.
    """
    from stae_cli.benchmark.loop import run_loop
    from stae_cli.benchmark.transformer import check_transformers

    device, cases = opt.parse_device(device), _cases(size, batch)
    check_transformers(transformer)
    checkpoint = load_weights(weights, architecture)

    report = run_loop(
        checkpoint.model(),
        cases,
        transformer,
        weights=checkpoint.name,
        device=device,
        dtype=opt.parse_dtype(dtype),
        seconds=seconds,
        on_case=partial(_announce, quiet),
    )
    if as_json:
        print_json(report.as_json())
    elif not quiet:
        print_loop(report)


def _announce(quiet: bool, case: "Case", transformer: str = "") -> None:
    if not quiet:
        print_note(f"timing {case}" + f", transformer {transformer}" * bool(transformer))


def load_weights(name: str, architecture: str | None) -> "Checkpoint":
    """The checkpoint that `--weights` names, or seeded weights of the architecture.

    Raises:
        UsageError: a malformed `hf://` name, or an unknown architecture.
        CheckpointError: unknown, unreachable, damaged, or of another network.
    """
    from stae_cli.benchmark.contenders import seeded_checkpoint
    from stae_cli.checkpoints.checkpoint import check_architecture, load_checkpoint
    from stae_cli.network.architecture import F8C16, preset

    if name == SEEDED:
        return seeded_checkpoint(preset(architecture or F8C16.name))
    checkpoint = load_checkpoint(name)
    if architecture is not None:
        check_architecture(checkpoint, preset(architecture))
    return checkpoint


def _cases(sizes: Sequence[str], batches: Sequence[int]) -> "list[Case]":
    from stae_cli.benchmark.report import Case

    return [Case(*opt.parse_size(size), batch) for size in sizes for batch in batches]


def _check_place(names: Sequence[str], device: str) -> None:
    """Refuses forms of the codec that are the codec itself on this device, and absent engines."""
    from stae_cli.benchmark.contenders import VARIANTS
    from stae_cli.benchmark.engines import ON_CPU
    from stae_cli.codec.device import pick_device

    kind = pick_device(device).type if {*names} & {*VARIANTS, *ON_CPU} else ""
    for name in names:
        if name in VARIANTS and kind != "cuda":
            raise UsageError(
                f"`{name}` differs from stae on CUDA only, and this is `{kind}`",
                "omit it, or use `--device cuda`",
            )
        if name in ON_CPU and kind != "cpu":
            raise UsageError(
                f"`{name}` is timed on the CPU only, and this is `{kind}`",
                "omit it, or use `--device cpu`",
            )

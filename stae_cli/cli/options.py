"""Options that several commands share, and what their texts mean."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from stae_cli.errors import UsageError

if TYPE_CHECKING:
    import torch

WEIGHTS_HELP = (
    "Checkpoint: `stupidae` (published, from the hub), `builtin`, a name from `stae weights list`, "
    "a .safetensors/.pt/.pth file, or hf://OWNER/REPO/FILE[@REVISION]."
)


class Dtype(StrEnum):
    """What the network computes in."""

    auto = "auto"
    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"


Sources = Annotated[
    list[str],
    typer.Argument(metavar="SOURCE", help="Files, folders or URLs.", show_default=False),
]
Dest = Annotated[
    str, typer.Argument(metavar="DEST", help="Folder for the results, made if absent.")
]
Weights = Annotated[
    str, typer.Option("--weights", metavar="NAME", envvar="STAE_WEIGHTS", help=WEIGHTS_HELP)
]
ArchitectureName = Annotated[
    str | None,
    typer.Option(
        "--architecture",
        metavar="NAME",
        help="Network of the family: f8c16 (published), f8c32, ...; `stae flops --all` lists them.",
        show_default=False,
    ),
]
Device = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="auto, cuda, cuda:N, mps or cpu.")
]
Devices = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="auto, cuda, cuda:N, mps or cpu; cuda:all, or several with commas: a process on each.",
    ),
]
ComputeDtype = Annotated[
    Dtype, typer.Option("--dtype", help="auto: float16 on CUDA, float32 elsewhere.")
]
BatchPatches = Annotated[
    int | None,
    typer.Option(
        "--batch-patches", min=1, max=2**31 - 1, help="8x8 patches on the device at once."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Reading threads."),
]
ReadersAndWriters = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Reading threads, and as many writing ones."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Write every output anew instead of resuming.")
]
KeepExtension = Annotated[
    bool,
    typer.Option("--keep-extension", help="Name outputs cat.jpg.safetensors, not cat.safetensors."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, no report.")]


def parse_device(name: str) -> str:
    """The device's name, checked for its form; whether it is there shows later.

    Raises:
        UsageError: no name, or no such kind of device.
    """
    if not name:
        raise UsageError("an empty name of a device", "use auto, cuda, cuda:N, mps or cpu")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise UsageError(f"unknown device `{name}`", "use auto, cuda, cuda:N, mps or cpu")
    return name


def parse_dtype(dtype: Dtype) -> torch.dtype | None:
    """The torch dtype, or None for `auto`."""
    import torch

    names = {
        Dtype.auto: None,
        Dtype.float16: torch.float16,
        Dtype.bfloat16: torch.bfloat16,
        Dtype.float32: torch.float32,
    }
    return names[dtype]

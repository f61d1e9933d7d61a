"""What `stae bench --path` shows: each stage by itself beside the whole, and what bounds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stae_cli.cli.benchweights import load_weights
from stae_cli.cli.console import print_fact, print_json, print_table
from stae_cli.cli.options import Dtype, parse_dtype

if TYPE_CHECKING:
    from stae_cli.benchmark.path import PathTimes
    from stae_cli.benchmark.report import Machine
    from stae_cli.codec.pixel_codec import PixelCodec


def bench_path(
    path: Path,
    *,
    architecture: str | None,
    device: str,
    dtype: Dtype,
    weights: str,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Times encoding and decoding of a folder's images, and prints what it found."""
    from stae_cli.benchmark.path import time_path
    from stae_cli.benchmark.report import describe_machine
    from stae_cli.codec.device import pick_device
    from stae_cli.codec.pixel_codec import PixelCodec

    place = pick_device(device)
    checkpoint = load_weights(weights, architecture)
    codec = PixelCodec(checkpoint.model(), device=place, dtype=parse_dtype(dtype))
    with TemporaryDirectory(prefix="stae-bench-") as folder:
        times = time_path([path], checkpoint, codec, workers=workers, folder=Path(folder))
    machine = describe_machine(place)
    if as_json:
        print_json(_path_as_json(times, machine, codec, checkpoint.name))
    elif not quiet:
        _print_path(times, machine, codec)


def _print_path(times: Sequence[PathTimes], machine: Machine, codec: PixelCodec) -> None:
    """A table for each direction, and what a faster machine would have to have."""
    on_cpu = machine.accelerator is None
    place = "the CPU, no accelerator was used" if on_cpu else machine.accelerator
    dtype = str(codec.dtype).removeprefix("torch.")
    print_fact(f"ran on {place}: {dtype}; {machine.cpu}, torch {machine.torch}")
    for one in times:
        print_fact(
            f"{one.command}: {one.images} images, {one.pixels / 1e6:.1f} megapixels, "
            f"{one.threads} threads for files"
        )
        rows = [
            [stage, f"{one.images / seconds:.2f}", f"{one.pixels / seconds / 1e6:.2f}"]
            for stage, seconds in one.seconds.items()
        ]
        print_table(one.command, ["alone, and whole", "images/s", "megapixels/s"], rows)
        print_fact(_bound(one))
    if on_cpu:
        print_fact("on a CPU the stages share its cores; alone, each had all of them")


def _bound(one: PathTimes) -> str:
    slowest = one.seconds[one.bound]
    others = ", ".join(
        f"{stage} could go {slowest / seconds:.1f}x as fast"
        for stage, seconds in one.seconds.items()
        if stage not in (one.bound, "whole")
    )
    share = slowest / one.seconds["whole"]
    return f"{one.command} is bound by {one.bound} (whole: {share:.0%} of it alone); {others}"


def _path_as_json(
    times: Sequence[PathTimes], machine: Machine, codec: PixelCodec, weights: str
) -> dict[str, Any]:
    """Plain dictionaries, lists and numbers."""
    return {
        "machine": asdict(machine),
        "dtype": str(codec.dtype).removeprefix("torch."),
        "weights": weights,
        "paths": [{**asdict(one), "bound_by": one.bound} for one in times],
    }

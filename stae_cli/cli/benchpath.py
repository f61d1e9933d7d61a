"""What `stae bench --path` shows: each stage by itself beside the whole, and what bounds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from stae_cli.cli.console import print_note, print_table

if TYPE_CHECKING:
    from stae_cli.benchmark.machine import Machine
    from stae_cli.model.codec import Codec
    from stae_cli.pipeline.path import PathTimes


def print_path(times: Sequence[PathTimes], machine: Machine, codec: Codec) -> None:
    """A table for each direction on stderr, and what a faster machine would have to have."""
    on_cpu = machine.accelerator is None
    place = "the CPU, no accelerator was used" if on_cpu else machine.accelerator
    dtype = str(codec.dtype).removeprefix("torch.")
    print_note(f"ran on {place}: {dtype}; {machine.cpu}, torch {machine.torch}")
    for one in times:
        print_note(
            f"{one.command}: {one.images} images, {one.pixels / 1e6:.1f} megapixels, "
            f"{one.threads} threads for files"
        )
        rows = [
            [stage, f"{one.images / seconds:.2f}", f"{one.pixels / seconds / 1e6:.2f}"]
            for stage, seconds in one.seconds.items()
        ]
        print_table(one.command, ["alone, and whole", "images/s", "megapixels/s"], rows)
        print_note(_bound(one))
    if on_cpu:
        print_note("on a CPU the stages share its cores; alone, each had all of them")


def _bound(one: PathTimes) -> str:
    slowest = one.seconds[one.bound]
    others = ", ".join(
        f"{stage} could go {slowest / seconds:.1f}x as fast"
        for stage, seconds in one.seconds.items()
        if stage not in (one.bound, "whole")
    )
    share = slowest / one.seconds["whole"]
    return f"{one.command} is bound by {one.bound} (whole: {share:.0%} of it alone); {others}"


def path_as_json(
    times: Sequence[PathTimes], machine: Machine, codec: Codec, weights: str
) -> dict[str, Any]:
    """Plain dictionaries, lists and numbers."""
    return {
        "machine": asdict(machine),
        "dtype": str(codec.dtype).removeprefix("torch."),
        "weights": weights,
        "paths": [{**asdict(one), "bound_by": one.bound} for one in times],
    }

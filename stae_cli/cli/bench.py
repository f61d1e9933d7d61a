"""`stae bench`: the group of its commands, and what it does without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from stae_cli.cli.bench_commands import (
    SEEDED,
    Against,
    Batches,
    Plot,
    Seconds,
    Sizes,
    Transformers,
    bench_loop,
    bench_network,
    bench_path,
)
from stae_cli.cli.options import (
    ArchitectureName,
    AsJson,
    ComputeDtype,
    Device,
    Quiet,
    ReadersAndWriters,
    Weights,
)
from stae_cli.errors import UsageError

NETWORK, PATH, LOOP = "", "--path", "--loop"  # what is measured, by the option that asks for it
USED_BY: Mapping[str, Sequence[str]] = {
    "--size": (NETWORK, LOOP),
    "--batch": (NETWORK, LOOP),
    "--seconds": (NETWORK, LOOP),
    "--against": (NETWORK,),
    "--plot": (NETWORK,),
    "--transformer": (LOOP,),
    "--workers": (PATH,),
}

PathOption = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="The same as `stae bench path FOLDER`.")
]
LoopOption = Annotated[bool, typer.Option("--loop", help="The same as `stae bench loop`.")]
bench = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


bench.command("network", short_help="Time the network, alone or against others.")(bench_network)
bench.command("path", short_help="Time images from file to file, stage by stage.")(bench_path)
bench.command("loop", short_help="Time training with cached latents and with encoding.")(bench_loop)


@bench.callback()
def bench_default(
    context: typer.Context,
    size: Sizes = ["1024"],  # noqa: B006  # Typer copies it
    batch: Batches = [1],  # noqa: B006
    against: Against = "",
    device: Device = "auto",
    dtype: ComputeDtype = "auto",
    weights: Weights = SEEDED,
    architecture: ArchitectureName = None,
    seconds: Seconds = 20.0,
    plot: Plot = None,
    path: PathOption = None,
    loop: LoopOption = False,
    transformer: Transformers = ["base"],  # noqa: B006
    workers: ReadersAndWriters = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure speed: of the network, from file to file, or in a training loop.

    Without a command this is `stae bench network` and takes its options.
    """
    given = _given(context)
    if (command := context.invoked_subcommand) is not None:
        if given:
            raise UsageError(
                f"`{given[0]}` stands before `{command}`",
                f"write it behind: `stae bench {command} {given[0]}`",
            )
        return
    if loop and path is not None:
        raise UsageError("`--loop` and `--path` measure different things", "give one of them")
    _check_options(given, LOOP if loop else NETWORK if path is None else PATH)
    if path is not None:
        bench_path([path], device, dtype, weights, architecture, workers, as_json, quiet)
    elif loop:
        bench_loop(
            size, batch, transformer, device, dtype, weights, architecture, seconds, as_json, quiet
        )
    else:
        bench_network(
            size,
            batch,
            against,
            device,
            dtype,
            weights,
            architecture,
            seconds,
            plot,
            as_json,
            quiet,
        )


def _given(context: typer.Context) -> list[str]:
    """The options on the command line, by their long names."""
    sources = {p.opts[0]: context.get_parameter_source(p.name) for p in context.command.params}
    return [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]


def _check_options(given: Sequence[str], mode: str) -> None:
    """Refuses options that would be ignored."""
    for option in given:
        users = USED_BY.get(option, (mode,))
        if mode in users:
            continue
        if mode == NETWORK:
            raise UsageError(f"`{option}` is for `{users[0]}`", "add that, or omit it")
        raise UsageError(f"`{option}` does not go with `{mode}`", "omit one of them")

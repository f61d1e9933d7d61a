"""`stae bench`: the group of its commands, and what it does without one."""

# Not `from __future__ import annotations`: Typer would evaluate each string eight times.
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from stae_cli.cli import options as opt
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

mode_option = partial(typer.Option, rich_help_panel="Instead of a command")

PathOption = Annotated[
    Path | None, mode_option(metavar="FOLDER", help="The same as `stae bench path FOLDER`.")
]
LoopOption = Annotated[bool, mode_option("--loop", help="The same as `stae bench loop`.")]
bench = typer.Typer(cls=opt.SectionedGroup, invoke_without_command=True, rich_markup_mode=None)


for name, command, summary in (
    ("network", bench_network, "The network, alone or against others."),
    ("path", bench_path, "Images from file to file, whole and stage by stage."),
    ("loop", bench_loop, "Training steps with cached latents and with encoding."),
):
    bench.command(name, cls=opt.SectionedCommand, short_help=summary)(command)


@bench.callback()
def bench_default(
    context: typer.Context,
    size: Sizes = ["1024"],  # noqa: B006  # Typer copies it
    batch: Batches = [1],  # noqa: B006
    against: Against = "",
    transformer: Transformers = ["base"],  # noqa: B006
    seconds: Seconds = 20.0,
    plot: Plot = None,
    weights: opt.Weights = SEEDED,
    architecture: opt.ArchitectureName = None,
    device: opt.Device = "auto",
    dtype: opt.ComputeDtype = "auto",
    workers: opt.ReadersAndWriters = None,
    path: PathOption = None,
    loop: LoopOption = False,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Measure speed: of the network, from file to file, or in a training loop.

    Without a command this is `stae bench network` and takes its options.
    """
    given = _given(context)
    if (command := context.invoked_subcommand) is not None:
        if given:
            raise UsageError(
                f"`{given[0]}` stands before `{command}`",
                f"write `stae bench {command} {given[0]}`",
            )
        return
    if loop and path is not None:
        raise UsageError("`--loop` and `--path` measure different things", "give one of them")
    _check_options(given, LOOP if loop else NETWORK if path is None else PATH)
    shared: dict[str, Any] = {
        "weights": weights,
        "architecture": architecture,
        "device": device,
        "dtype": dtype,
        "as_json": as_json,
        "quiet": quiet,
    }
    if path is not None:
        bench_path([path], workers=workers, **shared)
    elif loop:
        bench_loop(size, batch, transformer, seconds, **shared)
    else:
        bench_network(size, batch, against, seconds, plot, **shared)


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

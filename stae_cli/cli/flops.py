"""`stae flops`: what the network costs, layer by layer, next to the published figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stae_cli.cli import options as opt
from stae_cli.cli.console import print_fact, print_json, print_note, print_table
from stae_cli.errors import UsageError

if TYPE_CHECKING:
    from stae_cli.network.flops import Cost, Flops, Published, Stage

Size = Annotated[
    str,
    typer.Option("--size", metavar="N|WxH", help="Pixels of the picture, multiples of 8 (or 32)."),
]
Against = Annotated[
    str,
    typer.Option(metavar="NAME,...", help="Count these too: `sdxl`, `taesd`.", show_default=False),
]
Layers = Annotated[bool, typer.Option("--layers", help="List every layer.")]
Whole = Annotated[bool, typer.Option("--all", help="The whole family, next to sdxl and taesd.")]


def flops(
    size: Size = "1024",
    architecture: opt.ArchitectureName = None,
    whole: Whole = False,
    against: Against = "",
    layers: Layers = False,
    as_json: opt.AsJson = False,
    verbose: opt.Verbose = False,
) -> None:
    """Count operations and parameters; needs no weights.

    Two operations per multiply-add, matrix products only: convolutions, linear layers, matmuls.
    """
    width, height = opt.parse_size(size)
    if whole and architecture is not None:
        raise UsageError("`--all` and `--architecture` contradict each other", "give one of them")

    from stae_cli.benchmark.peers import PEERS, check_peers, count_peer, peers_are_installed
    from stae_cli.network.architecture import F8C16, PRESETS, preset
    from stae_cli.network.flops import count

    names = opt.parse_names(against)
    check_peers(names)
    if whole and not names and peers_are_installed():
        names = tuple(PEERS)
    ours = tuple(PRESETS.values()) if whole else (preset(architecture or F8C16.name),)
    costs = [count(each, width, height) for each in ours]
    costs += [count_peer(name, width, height) for name in names]
    if as_json:
        print_json({"networks": [_facts(cost, layers=layers) for cost in costs]})
        return
    if whole:
        _print_overview(costs)
        if not names:
            print_note("`pip install 'stae[peers]'` adds sdxl and taesd")
    for cost in costs if layers or not whole else ():
        _print_cost(cost, layers=layers)


def _print_overview(costs: Sequence[Cost]) -> None:
    columns = ("", "latent", "numbers", "encoder", "decoder", "parameters")
    rows = [
        (
            cost.network,
            "x".join(map(str, cost.latent)),
            f"{math.prod(cost.latent):,}",
            *(_figure(stage.flops.total) for stage in cost.stages),
            f"{sum(stage.parameters for stage in cost.stages):,}",
        )
        for cost in costs
    ]
    print_table(f"FLOPs for {costs[0].width}x{costs[0].height} pixels", columns, rows)


def _print_cost(cost: Cost, *, layers: bool) -> None:
    columns = ("", "conv", "linear", "matmul", "total", "published", "parameters")
    published = _published(cost)
    theirs = (published.encoder_flops, published.decoder_flops) if published else (0, 0)
    rows = [
        (
            stage.name,
            *map(_figure, (stage.flops.convolution, stage.flops.linear, stage.flops.matmul)),
            _figure(stage.flops.total),
            _figure(published_flops),
            f"{stage.parameters:,}",
        )
        for stage, published_flops in zip(cost.stages, theirs, strict=True)
    ]
    print_table(f"{cost.network}: FLOPs for {cost.width}x{cost.height} pixels", columns, rows)
    if published:
        print_fact(f"published: {published.source}. {published.why}")
    for stage in cost.stages if layers else ():
        _print_layers(cost.network, stage)


def _print_layers(network: str, stage: Stage) -> None:
    total = stage.flops.total
    rows = [
        (
            layer.path,
            _figure(layer.flops.total),
            f"{layer.flops.total / total:.1%}" if layer.flops.total else "",
            f"{layer.parameters:,}" if layer.parameters else "",
        )
        for layer in stage.layers
    ]
    print_table(f"{network} {stage.name}", ("layer", "FLOPs", "share", "parameters"), rows)


def _facts(cost: Cost, *, layers: bool) -> dict[str, Any]:
    published = _published(cost)
    return {
        "network": cost.network,
        "width": cost.width,
        "height": cost.height,
        "latent": list(cost.latent),
        "stages": [_stage_facts(stage, layers=layers) for stage in cost.stages],
        "published": asdict(published) if published else None,
    }


def _stage_facts(stage: Stage, *, layers: bool) -> dict[str, Any]:
    facts = {"name": stage.name, "flops": _by_kind(stage.flops), "parameters": stage.parameters}
    if layers:
        facts["layers"] = [
            {"path": one.path, "flops": _by_kind(one.flops), "parameters": one.parameters}
            for one in stage.layers
        ]
    return facts


def _by_kind(flops: Flops) -> dict[str, int]:
    return {**asdict(flops), "total": flops.total}


def _published(cost: Cost) -> Published | None:
    """The published figures of the network, if there are any for this size."""
    from stae_cli.network.flops import PUBLISHED, PUBLISHED_SIZE

    if (cost.width, cost.height) != (PUBLISHED_SIZE, PUBLISHED_SIZE):
        return None
    return PUBLISHED.get(cost.network)


def _figure(flops: float) -> str:
    """With a metric prefix: 115.16 G, 4.879 T."""
    if not flops:
        return ""
    if flops >= 1e12:
        return f"{flops / 1e12:.3f} T"
    return f"{flops / 1e9:.2f} G" if flops >= 1e9 else f"{flops / 1e6:.2f} M"

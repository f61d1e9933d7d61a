"""`stae roundtrip`: what autoencoders do to images, as pictures, as figures and as a page."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stae_cli.checkpoints.names import DEFAULT_WEIGHTS
from stae_cli.cli import options as opt
from stae_cli.cli.console import print_fact, print_note, print_table, progress_bar
from stae_cli.cli.engine import local_codec
from stae_cli.cli.report import finish
from stae_cli.errors import UsageError

if TYPE_CHECKING:
    from stae_cli.codec.pixel_codec import PixelCodec
    from stae_cli.metrics import Overall, Score
    from stae_cli.runs.autoencoders import Autoencoder, OwnAutoencoder
    from stae_cli.runs.roundtrip_plan import RoundtripTally

ROWS_SHOWN = 25

SeveralWeights = Annotated[
    list[str] | None,
    opt.network_option(
        "--weights",
        metavar="NAME",
        help=f"{opt.WEIGHTS_HELP} Repeat it to compare several.",
        show_default=f"STAE_WEIGHTS, else {DEFAULT_WEIGHTS}",
    ),
]
Peers = Annotated[
    list[Path] | None,
    opt.network_option(
        "--peer",
        metavar="FOLDER",
        help="Also compare an autoencoder in a folder of diffusers (`stae[peers]`). Repeatable.",
        show_default=False,
    ),
]


def roundtrip(
    context: typer.Context,
    sources: opt.Sources,
    dest: opt.Dest,
    weights: SeveralWeights = None,
    peer: Peers = None,
    edges: opt.EdgesOption = "pad",
    short_side: opt.ShortSide = None,
    max_pixels: opt.MaxPixels = None,
    square: opt.Square = None,
    adm_crop: opt.AdmCrop = None,
    background: opt.Background = "white",
    device: opt.Device = "auto",
    dtype: opt.ComputeDtype = "auto",
    batch_patches: opt.BatchPatches = None,
    workers: opt.ReadersAndWriters = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> int:
    """Encode and decode images, and compare: side by side, PSNR, SSIM and MSE.

    Writes the original, the reconstruction and a comparison of every image, metrics.json, and
    index.html, which shows all of them in a browser.
    """
    from stae_cli.runs.roundtrip import roundtrip as run
    from stae_cli.runs.roundtrip_plan import (
        PAGE_NAME,
        RoundtripSettings,
        plan_roundtrip,
        short_names,
    )
    from stae_cli.runs.roundtrip_report import command_line, figures

    device = opt.parse_device(device)
    prep = opt.parse_prep(edges, short_side, max_pixels, square, adm_crop, background)
    weights = weights or [os.environ.get("STAE_WEIGHTS") or DEFAULT_WEIGHTS]
    peers = _checked(peer or ())
    names = short_names([*weights, *map(str, peers)])
    settings = RoundtripSettings(prep=prep, names=names, workers=workers)
    plan = plan_roundtrip(sources, dest, settings)
    autoencoders, codec = _load(names, weights, peers, device, dtype, batch_patches)
    command = command_line(context.find_root().obj.get("arguments", ()))
    with progress_bar(plan.total, what="roundtrip", quiet=quiet) as advance:
        report = run(plan, autoencoders, codec, command=command, advance=advance)
    if not (quiet or as_json):
        _print_figures(report, autoencoders)
    page = plan.destination.place(PAGE_NAME)
    extra = {"autoencoders": figures(autoencoders, report), "report": page}
    code = finish(report, plan, codec, verb="compared", quiet=quiet, as_json=as_json, extra=extra)
    if not quiet:
        print_note(f"open {page} in a browser to look at them")
    return code


def _checked(peers: Sequence[Path]) -> list[Path]:
    """The folders by their whole paths; what they hold is loaded later."""
    found: list[Path] = []
    if peers:
        from stae_cli.checkpoints.peers import class_in

        for folder in peers:
            class_in(folder)
            if (whole := folder.resolve()) in found:
                raise UsageError(f"`--peer {folder}` is given twice", "give it once")
            found.append(whole)
    return found


def _load(
    names: Sequence[str],
    weights: Sequence[str],
    peers: Sequence[Path],
    device: str,
    dtype: opt.Dtype,
    batch_patches: int | None,
) -> tuple[list[Autoencoder], PixelCodec]:
    """The autoencoders in the order of the options, and the codec of the first."""
    from stae_cli.checkpoints.checkpoint import load_checkpoint
    from stae_cli.runs.autoencoders import OwnAutoencoder, PeerAutoencoder

    own: list[OwnAutoencoder] = []
    for name, given in zip(names, weights, strict=False):
        codec, checkpoint = local_codec(
            partial(load_checkpoint, given), device, dtype, batch_patches
        )
        _refuse_twice(own, given, checkpoint.fingerprint)
        own.append(OwnAutoencoder(name, codec, checkpoint))
    codec = own[0].codec
    others = [
        PeerAutoencoder(name, folder, codec.device)
        for name, folder in zip(names[len(own) :], peers, strict=True)
    ]
    return [*own, *others], codec


def _refuse_twice(others: Sequence[OwnAutoencoder], given: str, fingerprint: str) -> None:
    for other in others:
        if other.checkpoint.fingerprint == fingerprint:
            raise UsageError(
                f"`--weights {given}` is the same checkpoint as `{other.name}`", "give it once"
            )


def _print_figures(report: RoundtripTally, autoencoders: Sequence[Autoencoder]) -> None:
    if not report.scored:
        return
    worst_first = sorted(report.scored, key=lambda one: -max(score.mse for score in one.scores))
    several = len(autoencoders) > 1
    columns = (
        [f"{each.name} dB" for each in autoencoders] if several else ["PSNR dB", "SSIM", "MSE"]
    )
    rows = [
        (
            one.key,
            f"{one.width}x{one.height}",
            *([_figures(score)[0] for score in one.scores] if several else _figures(one.scores[0])),
        )
        for one in worst_first[:ROWS_SHOWN]
    ]
    print_table("worst first", ("image", "size", *columns), rows)
    if len(worst_first) > ROWS_SHOWN:
        print_fact(f"and {len(worst_first) - ROWS_SHOWN} better ones in metrics.json")
    for index, each in enumerate(autoencoders):
        overall = report.overall(index)
        assert overall is not None  # there are scores
        psnr, ssim, mse = _figures(overall)
        name = each.name if several else "overall"
        print_fact(f"{name}: PSNR {psnr} dB, SSIM {ssim} (means), MSE {mse} (pooled)")


def _figures(score: Score | Overall) -> tuple[str, str, str]:
    return (
        f"{score.psnr:.2f}" if math.isfinite(score.psnr) else "identical",
        "-" if score.ssim is None else f"{score.ssim:.4f}",
        f"{score.mse:.6f}",
    )

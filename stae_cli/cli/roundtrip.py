"""`stae roundtrip`: what the autoencoder does to images, as pictures and as figures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from stae_cli.checkpoints.names import DEFAULT_WEIGHTS
from stae_cli.cli import options as opt
from stae_cli.cli.console import print_fact, print_table, progress_bar
from stae_cli.cli.report import finish

if TYPE_CHECKING:
    from stae_cli.metrics import Overall
    from stae_cli.runs.roundtrip import RoundtripTally

ROWS_SHOWN = 25


def roundtrip(
    sources: opt.Sources,
    dest: opt.Dest,
    weights: opt.Weights = DEFAULT_WEIGHTS,
    edges: opt.EdgesOption = "pad",
    short_side: opt.ShortSide = None,
    max_pixels: opt.MaxPixels = None,
    square: opt.Square = None,
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

    Writes KEY.reconstruction.png and KEY.comparison.png for every image, and metrics.json.
    """
    from stae_cli.runs.roundtrip import RoundtripSettings, plan_roundtrip
    from stae_cli.runs.roundtrip import roundtrip as run

    device = opt.parse_device(device)
    prep = opt.parse_prep(edges, short_side, max_pixels, square, background)
    plan = plan_roundtrip(sources, dest, RoundtripSettings(prep=prep, workers=workers))

    from stae_cli.checkpoints.checkpoint import load_checkpoint
    from stae_cli.codec.device import pick_device
    from stae_cli.codec.pixel_codec import PixelCodec

    place = pick_device(device)
    checkpoint = load_checkpoint(weights)
    codec = PixelCodec(
        checkpoint.model(), device=place, dtype=opt.parse_dtype(dtype), batch_patches=batch_patches
    )
    with progress_bar(plan.total, what="roundtrip", quiet=quiet) as advance:
        report = run(plan, checkpoint, codec, advance=advance)
    if not (quiet or as_json):
        _print_figures(report)
    extra = {"overall": report.overall.as_json() if report.overall else None}
    return finish(report, plan, codec, verb="compared", quiet=quiet, as_json=as_json, extra=extra)


def _print_figures(report: RoundtripTally) -> None:
    if report.overall is None:
        return
    worst_first = sorted(report.scored, key=lambda one: -one.score.mse)
    rows = [
        (
            one.key,
            f"{one.width}x{one.height}",
            *_figures(one.score.psnr, one.score.ssim, one.score.mse),
        )
        for one in worst_first[:ROWS_SHOWN]
    ]
    print_table("worst first", ("image", "size", "PSNR dB", "SSIM", "MSE"), rows)
    if len(worst_first) > ROWS_SHOWN:
        print_fact(f"and {len(worst_first) - ROWS_SHOWN} better ones in metrics.json")
    print_fact(_sentence(report.overall))


def _sentence(overall: Overall) -> str:
    psnr, ssim, mse = _figures(overall.psnr, overall.ssim, overall.mse)
    return f"overall: PSNR {psnr} dB, SSIM {ssim} (means), MSE {mse} (pooled)"


def _figures(psnr: float, ssim: float | None, mse: float) -> tuple[str, str, str]:
    return (
        f"{psnr:.2f}" if math.isfinite(psnr) else "identical",
        "-" if ssim is None else f"{ssim:.4f}",
        f"{mse:.6f}",
    )

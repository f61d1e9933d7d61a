"""`stae roundtrip`: what the autoencoder does to images, as pictures and as figures."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from stae_cli.checkpoints.names import DEFAULT_WEIGHTS
from stae_cli.cli import options as opt
from stae_cli.cli.console import print_fact, print_table, progress_bar
from stae_cli.cli.engine import local_codec
from stae_cli.cli.report import finish

if TYPE_CHECKING:
    from stae_cli.metrics import Overall, Score
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

    Writes KEY.reconstruction.png and KEY.comparison.png for every image, and metrics.json.
    """
    from stae_cli.runs.roundtrip import RoundtripSettings, plan_roundtrip
    from stae_cli.runs.roundtrip import roundtrip as run

    device = opt.parse_device(device)
    prep = opt.parse_prep(edges, short_side, max_pixels, square, adm_crop, background)
    plan = plan_roundtrip(sources, dest, RoundtripSettings(prep=prep, workers=workers))

    from stae_cli.checkpoints.checkpoint import load_checkpoint

    load = partial(load_checkpoint, weights)
    codec, checkpoint = local_codec(load, device, dtype, batch_patches)
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
        (one.key, f"{one.width}x{one.height}", *_figures(one.score))
        for one in worst_first[:ROWS_SHOWN]
    ]
    print_table("worst first", ("image", "size", "PSNR dB", "SSIM", "MSE"), rows)
    if len(worst_first) > ROWS_SHOWN:
        print_fact(f"and {len(worst_first) - ROWS_SHOWN} better ones in metrics.json")
    psnr, ssim, mse = _figures(report.overall)
    print_fact(f"overall: PSNR {psnr} dB, SSIM {ssim} (means), MSE {mse} (pooled)")


def _figures(score: Score | Overall) -> tuple[str, str, str]:
    return (
        f"{score.psnr:.2f}" if math.isfinite(score.psnr) else "identical",
        "-" if score.ssim is None else f"{score.ssim:.4f}",
        f"{score.mse:.6f}",
    )

"""What `stae train` says: of its photos, its progress and its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stae_cli.cli.console import print_error, print_json, print_note, print_warning
from stae_cli.cli.report import ALL_GOOD, SOME_FAILED

if TYPE_CHECKING:
    from stae_cli.training.run import Outcome, Progress, Run

NAMED = 3  # photos in a warning


def shown(show: Callable[[float, str], None]) -> Callable[[Progress], None]:
    """What moves a bar and says beside it how the run does."""

    def on_progress(progress: Progress) -> None:
        words = [f"step {progress.step}"]
        if progress.loss is not None:
            words.append(f"loss {progress.loss:.5f}")
        if progress.psnr is not None:
            words.append(f"PSNR {progress.psnr:.2f} dB")
        show(progress.fraction, ", ".join(words))

    return on_progress


def announce(run: Run, *, quiet: bool) -> None:
    """Says what a run trains on, and what of it cannot be used."""
    photos = run.photos
    for problem in photos.problems:
        print_error(f"{problem.key}: {problem.reason}")
    if run.overlap:
        more = len(run.overlap) - NAMED
        named = ", ".join(run.overlap[:NAMED]) + (f" and {more} more" if more > 0 else "")
        print_warning(
            "--validate holds photos that are trained on too, so their PSNR says little about "
            f"others: {named}"
        )
    if quiet:
        return
    words = [f"{photos.photos} photos, {photos.pixels / 1e6:.0f} megapixels"]
    words += [f"{photos.small} smaller than the crop were skipped"] * bool(photos.small)
    words += [f"{photos.left_out} left out for lack of --memory"] * bool(photos.left_out)
    print_note(", ".join(words))
    if run.resumed_at:
        print_note(f"going on after step {run.resumed_at}")


def finish(outcome: Outcome, *, quiet: bool, as_json: bool) -> int:
    """Says what a run made; returns the exit code."""
    if not quiet:
        print_note(f"{outcome.steps} steps in {outcome.seconds / 60:.1f} minutes")
        if outcome.psnr is not None:
            print_note(f"validation PSNR {outcome.psnr:.2f} dB")
        print_note(f"wrote {outcome.out}; log and pictures are in {outcome.workspace}")
    if as_json:
        print_json(_summary(outcome))
    return SOME_FAILED if outcome.photos.problems else ALL_GOOD


def _summary(outcome: Outcome) -> dict[str, Any]:
    from stae_cli.metrics import finite

    photos = outcome.photos
    return {
        "checkpoint": str(outcome.out),
        "folder": str(outcome.workspace),
        "steps": outcome.steps,
        "seconds": outcome.seconds,
        "resumed_at": outcome.resumed_at,
        "loss": outcome.loss,
        "psnr": None if outcome.psnr is None else finite(outcome.psnr),
        "photos": photos.photos,
        "megapixels": photos.pixels / 1e6,
        "small": photos.small,
        "left_out": photos.left_out,
        "failures": [{"source": p.key, "reason": p.reason} for p in photos.problems],
    }

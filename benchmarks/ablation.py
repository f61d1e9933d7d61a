"""What each choice of the training recipe is worth: short runs that see equally many pixels.

    python benchmarks/ablation.py PHOTOS... --validate HELD_OUT --out FOLDER

Every run is a run of `stae train` that differs from the first in one thing. Run the same command
again after an interruption: finished runs are not repeated, the one under way goes on. Prints a
Markdown table, which `FOLDER/table.md` holds as far as it has come.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stae_cli.checkpoints.checkpoint import load_checkpoint, read_checkpoint
from stae_cli.codec.device import pick_device
from stae_cli.errors import StaeError
from stae_cli.network.architecture import F8C16, Architecture
from stae_cli.training.ranks import Ranks
from stae_cli.training.recipe import Recipe
from stae_cli.training.run import Run
from stae_cli.training.settings import TrainSettings
from stae_cli.training.start import PCA, RANDOM
from stae_cli.training.workspace import Workspace


@dataclass(frozen=True)
class Result:
    """A finished run: PSNR in dB on the held-out photos before and after."""

    name: str
    recipe: Recipe
    started: float
    psnr: float
    steps: int
    seconds: float


def main(argv: Sequence[str] | None = None) -> None:
    options = parsed(argv)
    runs = variants(base_of(options))
    if unknown := set(options.only) - runs.keys():
        sys.exit(f"error: no run {', '.join(sorted(unknown))}\nhint: there are {', '.join(runs)}")
    results: list[Result] = []
    for name, recipe in runs.items():
        if options.only and name not in options.only:
            continue
        try:
            results.append(trained(name, recipe, options))
        except StaeError as error:
            print(f"{name}: {error.message}; {error.hint}", file=sys.stderr, flush=True)
            continue
        (options.out / "table.md").write_text(table(results) + "\n", encoding="utf-8")
        print(f"{name}: {results[-1].psnr:.2f} dB", file=sys.stderr, flush=True)
    print(table(results))


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, nargs="+", help="files or folders to train on")
    parser.add_argument("--validate", type=Path, required=True, help="photos to measure on")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the runs")
    parser.add_argument("--steps", type=int, default=300, help="of the first run")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--memory", type=float, default=4.0, help="GB of decoded photos")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", action="append", default=[], metavar="RUN")
    parser.add_argument("--like", help="a checkpoint whose architecture is taken, not its weights")
    return parser.parse_args(argv)


def base_of(options: argparse.Namespace) -> Recipe:
    return Recipe(
        PCA,
        steps=options.steps,
        learning_rate=options.lr,
        batch=options.batch,
        crop=options.crop,
        dtype=options.dtype,
    )


def variants(base: Recipe) -> Mapping[str, Recipe]:
    """Runs by name, the most telling ones first; each sees as many pixels as the first."""
    steps, batch = base.steps or 1, base.batch
    return {
        "PCA start, AdamW, EMA": base,
        "random start": replace(base, start=RANDOM),
        "no EMA": replace(base, ema=0.0),
        "Muon": replace(base, optimizer="muon"),
        "Snoo": replace(base, snoo=True),
        "twice the crop": replace(base, crop=2 * base.crop, batch=max(1, batch // 4)),
        "four times the batch": replace(base, batch=4 * batch, steps=max(1, steps // 4)),
        "0.4 of the rate": replace(base, learning_rate=0.4 * base.learning_rate),
        "twice the rate": replace(base, learning_rate=2 * base.learning_rate),
        "Muon and Snoo": replace(base, optimizer="muon", snoo=True),
        "random start, Muon and Snoo, twice the rate": replace(
            base,
            start=RANDOM,
            optimizer="muon",
            snoo=True,
            learning_rate=2 * base.learning_rate,
        ),
    }


def trained(name: str, recipe: Recipe, options: argparse.Namespace) -> Result:
    """The result of a run, which is trained only if it is not finished already."""
    out = options.out / f"{name.lower().replace(',', '').replace(' ', '-')}.safetensors"
    if not finished(out, recipe):
        settings = TrainSettings(
            sources=options.photos,
            out=out,
            recipe=recipe,
            architecture=architecture(options.like),
            validate=options.validate,
            memory=int(options.memory * 1e9),
            overwrite=out.exists(),
        )
        device = pick_device(options.device)
        Run(settings, device=device, ranks=Ranks(), on_progress=lambda progress: None).train()
    log = Workspace(out).log.read()
    measured = [line["psnr"] for line in log if "psnr" in line]
    last = log[-1]
    return Result(name, recipe, measured[0], measured[-1], last["step"], last["seconds"])


def finished(out: Path, recipe: Recipe) -> bool:
    if not out.exists():
        return False
    recorded = read_checkpoint(out, name=out.name).metadata["recipe"]
    return json.loads(recorded) == json.loads(recipe.describe())


def architecture(like: str | None) -> Architecture:
    return F8C16 if like is None else load_checkpoint(like).architecture


def table(results: Sequence[Result]) -> str:
    lines = [
        "| run | steps | batch, crop | rate | seconds | PSNR at the start, dB | at the end, dB |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in results:
        recipe = one.recipe
        lines.append(
            f"| {one.name} | {one.steps} | {recipe.batch}, {recipe.crop} | "
            f"{recipe.learning_rate:g} | {one.seconds:.0f} | {one.started:.2f} | {one.psnr:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

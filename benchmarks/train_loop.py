"""How near the training loop comes to a bare loop on one fixed batch, in steps per second.

    python benchmarks/train_loop.py PHOTOS --crop 128 --batch 8 --dtype bfloat16

The two take turns, a round of a few steps each; the figure is the median over rounds of the ratio
within a round, so that what else the machine does falls on both alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import torch

from stae_cli.codec.device import pick_device
from stae_cli.network.stupid_ae import StupidAE
from stae_cli.training.crops import Crops
from stae_cli.training.loop import Loop
from stae_cli.training.optimizers import BETAS
from stae_cli.training.photos import load_photos
from stae_cli.training.ranks import Ranks
from stae_cli.training.recipe import Recipe


def main() -> None:
    options = parsed()
    device = pick_device(options.device)
    photos = load_photos([options.photos], crop=options.crop, memory=4 << 30)
    recipe = Recipe(
        "random",
        steps=1_000_000,
        batch=options.batch,
        crop=options.crop,
        dtype=options.dtype,
        learning_rate=1e-5,
    )
    crops = Crops(photos, crop=recipe.crop, batch=recipe.batch, seed=0, device=device)
    loop = Loop(StupidAE(), recipe, crops, ranks=Ranks())
    bare = bare_step(recipe, crops)
    for step in (loop.advance, bare):
        timed(step, 2, device)
    rounds = [
        (timed(loop.advance, options.steps, device), timed(bare, options.steps, device))
        for _ in range(options.rounds)
    ]
    ratios = [theirs / ours for ours, theirs in rounds]
    low, *_, high = quantiles(ratios, n=10)
    print(f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{recipe.batch} crops of {recipe.crop}, {recipe.dtype}, {options.rounds} rounds")
    print(f"stae train: {options.steps / median(ours for ours, _ in rounds):.3f} steps/s")
    print(f"bare loop:  {options.steps / median(theirs for _, theirs in rounds):.3f} steps/s")
    print(f"ratio: {median(ratios):.3f} (10th to 90th percentile {low:.3f} to {high:.3f})")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def bare_step(recipe: Recipe, crops: Crops) -> Callable[[], None]:
    """Forward, backward and AdamW on a batch that is there already; nothing else."""
    model = StupidAE().to(crops.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=BETAS, fused=True)
    images = crops.batch(0)

    def step() -> None:
        half = recipe.dtype == "bfloat16"
        with torch.autocast(crops.device.type, torch.bfloat16, enabled=half):
            reconstruction = model(images)
        (reconstruction.float() - images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def timed(step: Callable[[], None], steps: int, device: torch.device) -> float:
    began = time.perf_counter()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

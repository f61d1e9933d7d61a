"""Trains every network of the family alike, scores it on photos and times it.

    python -m benchmarks.family TRAIN... --score PHOTOS --out FOLDER --steps 2000

Each is one run of `stae train` from its linear start, with the same steps on the same crops; those
of two stages train both at once. Then `stae roundtrip` scores it on other photos and `stae bench`
times it. What is done stays in FOLDER: repeat the command after an interruption.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.record import options, record, stae_json
from benchmarks.report import family_table
from stae_cli.checkpoints.checkpoint import read_checkpoint
from stae_cli.network.architecture import PRESETS


def main(argv: Sequence[str] | None = None) -> None:
    given = parsed(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    names = given.only.split(",") if given.only else list(PRESETS)
    for name in names:
        train(name, given)
    costs = stae_json("flops", "--all", "--size", given.side)["networks"]
    flops = {each["network"]: each for each in costs}
    rows = [
        {"network": name, **scored(name, given), **timed(name, given), **costs_of(flops[name])}
        for name in names
    ]
    print("\n".join(family_table(rows)))
    facts = {key: getattr(given, key) for key in ("steps", "batch", "crop", "lr", "side")}
    facts |= {"trained_on": [path.name for path in given.train], "scored_on": given.score.name}
    record(given, "family", facts | {"rows": rows}, given.device)


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options("family", __doc__)
    parser.add_argument("train", type=Path, nargs="+", help="photos to train on")
    parser.add_argument("--score", type=Path, required=True, help="other photos, to score on")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and scores")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=128, help="a multiple of 32")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto", help="of training")
    parser.add_argument("--side", type=int, default=1024, help="of the picture that is timed")
    parser.add_argument("--seconds", type=float, default=20, help="for timing each")
    parser.add_argument("--only", default="", help="names with commas, instead of the whole family")
    return parser.parse_args(argv)


def train(name: str, given: argparse.Namespace) -> None:
    """A run of `stae train`, unless its checkpoint exists."""
    settings = {"steps": given.steps, "batch": given.batch, "crop": given.crop}
    target = checkpoint_of(name, given)
    if target.exists():
        recipe = json.loads(read_checkpoint(target, name=name).metadata["recipe"])
        made_with = {key: recipe.get(key) for key in (*settings, "learning_rate")}
        if made_with != settings | {"learning_rate": given.lr}:
            sys.exit(f"{target} was trained with {made_with}: give another --out")
        return
    print(f"training {name}", file=sys.stderr)
    words = [part for key, value in settings.items() for part in (f"--{key}", value)]
    words += ["--lr", given.lr, "--dtype", given.dtype, "--device", given.device]
    stae_json("train", *given.train, "--out", target, "--architecture", name, *words)


def scored(name: str, given: argparse.Namespace) -> dict[str, float]:
    """PSNR and SSIM over whole photos, through float16 latents and 8-bit pixels."""
    weights = checkpoint_of(name, given)

    def score() -> dict[str, float]:
        folder = given.out / f"{name}.roundtrip"
        network = ("--weights", weights, "--device", given.device)
        made = stae_json("roundtrip", given.score, folder, *network, "--quiet")
        overall = made["autoencoders"][0]["overall"]
        return {"psnr": overall["psnr"], "ssim": overall["ssim"]}

    key = read_checkpoint(weights, name=name).fingerprint + str(given.score)
    return kept(given.out / f"{name}.score.json", key, score)


def timed(name: str, given: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of one picture, the median of the rounds."""

    def time() -> dict[str, float]:
        how = ("--seconds", given.seconds, "--device", given.device, "--quiet")
        report = stae_json("bench", "--architecture", name, "--size", given.side, *how)
        timings = report["results"][0]["timings"]
        return {f"{one['stage']}_ms": one["milliseconds"]["median"] for one in timings}

    return kept(given.out / f"{name}.time.json", f"{given.device} {given.side}", time)


def costs_of(facts: dict) -> dict:
    flops = {f"{stage['name']}_flops": stage["flops"]["total"] for stage in facts["stages"]}
    parameters = sum(stage["parameters"] for stage in facts["stages"])
    return {"latent": facts["latent"], **flops, "parameters": parameters}


def kept(path: Path, key: str, make: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The figures in a file, if they were made for the same key; else made and written."""
    found = json.loads(path.read_text()) if path.exists() else {}
    if found.get("key") != key:
        found = {"key": key, "figures": make()}
        path.write_text(json.dumps(found) + "\n")
    return found["figures"]


def checkpoint_of(name: str, given: argparse.Namespace) -> Path:
    return given.out / f"{name}.safetensors"


if __name__ == "__main__":
    main()

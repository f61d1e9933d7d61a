"""Every network of the family, trained alike, in one table: PSNR, FLOPs and measured time.

    python benchmarks/family.py TRAIN... --score PHOTOS --out FOLDER --steps 2000

Each is one run of `stae train` from its linear start, with the same steps on the same crops; those
of two stages train both at once. Then `stae roundtrip` scores it on other photos and `stae bench`
times it. What is done stays in FOLDER: run the same command again after an interruption, and it
goes on. Prints a Markdown table, and records it in benchmarks/results with `--record`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from record import record

from stae_cli.checkpoints.checkpoint import read_checkpoint
from stae_cli.network.architecture import PRESETS

TIMED = 1024  # pixels on a side of the picture that FLOPs and times are given for


def main() -> None:
    options = parsed()
    options.out.mkdir(parents=True, exist_ok=True)
    names = options.only.split(",") if options.only else list(PRESETS)
    for name in names:
        train(name, options)
    flops = {each["network"]: each for each in stae("flops", "--all", "--size", TIMED)["networks"]}
    rows = [
        {"network": name, **scored(name, options), **timed(name, options), **costs(flops[name])}
        for name in names
    ]
    print(table(rows))
    if options.record:
        budget = {"steps": options.steps, "batch": options.batch, "crop": options.crop}
        facts = budget | {"lr": options.lr, "trained_on": [path.name for path in options.train]}
        record("family", facts | {"scored_on": options.score.name, "rows": rows})


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path, nargs="+", help="photos to train on")
    parser.add_argument("--score", type=Path, required=True, help="other photos, to score on")
    parser.add_argument("--out", type=Path, required=True, help="where runs and results are kept")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=128, help="a multiple of 32")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="of training")
    parser.add_argument("--seconds", type=float, default=20, help="for timing each")
    parser.add_argument("--only", default="", help="names with commas, instead of the whole family")
    parser.add_argument("--record", action="store_true")
    return parser.parse_args()


def train(name: str, options: argparse.Namespace) -> None:
    """A run of `stae train`, unless its checkpoint is there."""
    settings = {"steps": options.steps, "batch": options.batch, "crop": options.crop}
    target = checkpoint_of(name, options)
    if target.exists():
        recipe = json.loads(read_checkpoint(target, name=name).metadata["recipe"])
        made_with = {key: recipe.get(key) for key in (*settings, "learning_rate")}
        if made_with != settings | {"learning_rate": options.lr}:
            sys.exit(f"{target} was trained with {made_with}: give another --out")
        return
    print(f"training {name}", file=sys.stderr)
    given = [part for key, value in settings.items() for part in (f"--{key}", value)]
    stae(
        "train", *options.train, "--out", target, "--architecture", name, *given,
        "--lr", options.lr, "--dtype", options.dtype, "--device", options.device,
    )  # fmt: skip


def scored(name: str, options: argparse.Namespace) -> dict[str, float]:
    """PSNR and SSIM over whole photos, through float16 latents and 8-bit pixels."""
    weights = checkpoint_of(name, options)

    def score() -> dict[str, float]:
        folder = options.out / f"{name}.roundtrip"
        network = ("--weights", weights, "--device", options.device)
        stae("roundtrip", options.score, folder, *network, "--quiet")
        overall = json.loads((folder / "metrics.json").read_text())["overall"]
        return {"psnr": overall["psnr"], "ssim": overall["ssim"]}

    key = read_checkpoint(weights, name=name).fingerprint + str(options.score)
    return kept(options.out / f"{name}.score.json", key, score)


def timed(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of one picture, the median of the rounds."""

    def time() -> dict[str, float]:
        seconds, device = ("--seconds", options.seconds), ("--device", options.device)
        network = ("--architecture", name, "--size", TIMED)
        report = stae("bench", *network, *seconds, *device, "--quiet")
        timings = report["results"][0]["timings"]
        return {f"{one['stage']}_ms": one["milliseconds"]["median"] for one in timings}

    return kept(options.out / f"{name}.time.json", options.device, time)


def costs(facts: dict[str, Any]) -> dict[str, Any]:
    flops = {f"{stage['name']}_flops": stage["flops"]["total"] for stage in facts["stages"]}
    parameters = sum(stage["parameters"] for stage in facts["stages"])
    return {"latent": facts["latent"], **flops, "parameters": parameters}


def kept(path: Path, key: str, make: Any) -> dict[str, float]:
    """The figures in a file, if they were made for the same key; else made and written."""
    found = json.loads(path.read_text()) if path.exists() else {}
    if found.get("key") != key:
        found = {"key": key, "figures": make()}
        path.write_text(json.dumps(found) + "\n")
    return found["figures"]


def checkpoint_of(name: str, options: argparse.Namespace) -> Path:
    return options.out / f"{name}.safetensors"


def stae(*arguments: object) -> Any:
    """What a command prints as JSON."""
    command = [sys.executable, "-m", "stae_cli", *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def table(rows: Sequence[dict[str, Any]]) -> str:
    size = f"{TIMED}x{TIMED}"
    lines = [
        f"| network | latent of {size} | PSNR dB | SSIM | encoder | decoder | GFLOP | parameters |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        latent = "x".join(map(str, row["latent"]))
        flops = f"{row['encoder_flops'] / 1e9:.0f} + {row['decoder_flops'] / 1e9:.0f}"
        lines.append(
            f"| {row['network']} | {latent} | {row['psnr']:.2f} | {row['ssim']:.4f} | "
            f"{row['encoder_ms']:.0f} ms | {row['decoder_ms']:.0f} ms | {flops} | "
            f"{row['parameters'] / 1e6:.1f} M |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

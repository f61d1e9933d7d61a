"""Writes benchmarks/README.md from what benchmarks/results holds.

python benchmarks/report.py
"""

import json
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"

HEAD = """# Measured

Every speed figure in the README comes from here. Runs are compared in pairs within one process or
one script, and medians are shown: quote the ratios, a shared machine's milliseconds come and go.

| script | measures |
|---|---|
| `python benchmarks/networks.py` | the network beside the plain module and other autoencoders |
| `python benchmarks/files.py` | reading, PNG writing, mixed sizes, memory |
| `python benchmarks/train_loop.py PHOTOS` | the training loop beside a bare one on one batch |
| `python benchmarks/quality.py PHOTOS` | PSNR, SSIM and MSE of checkpoints beside the linear PCA |
| `python benchmarks/ablation.py PHOTOS` | what each choice of the training recipe is worth |
| `python benchmarks/packing.py` | a transformer's step on mixed sizes beside one on equal sizes |
| `python benchmarks/family.py TRAIN --score PHOTOS --out FOLDER` | the family, trained alike |
| `PYTHONPATH=. python benchmarks/crashes.py` | what reruns leave after kills at random moments |
| `PYTHONPATH=. python benchmarks/scale.py` | planning, memory and reruns of 100,000 tiny images |
| `python benchmarks/report.py` | nothing: writes this page from `results` |

On a machine with an NVIDIA card, this fills the CUDA table in under nine minutes:

```console
$ python benchmarks/networks.py --device cuda --sizes 256,512,1024,2048 --batches 1,8 --seconds 5
$ python benchmarks/report.py
```
"""


def main() -> None:
    parts = [HEAD]
    for path in sorted(RESULTS.glob("networks-*.json")):
        parts += networks(json.loads(path.read_text()), path.with_suffix(".png"))
    for path in sorted(RESULTS.glob("files-*.json")):
        parts += files(json.loads(path.read_text()))
    for path in sorted(RESULTS.glob("quality*.json")):
        parts += quality(json.loads(path.read_text()))
    for path in sorted(RESULTS.glob("packing-*.json")):
        parts += packing(json.loads(path.read_text()))
    for path in sorted(RESULTS.glob("family*.json")):
        parts += family(json.loads(path.read_text()))
    (HERE / "README.md").write_text("\n".join(parts))


def family(result: dict) -> list[str]:
    lines = [
        "## The family, trained alike",
        "",
        f"{result['steps']} steps of {result['batch']} crops of {result['crop']} pixels each, from "
        f"the linear start, at {result['commit']}; scored on {result['scored_on']}, timed at "
        "1024x1024.",
        "",
        "| network | latent | PSNR dB | SSIM | encoder | decoder | parameters |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        latent = "x".join(map(str, row["latent"]))
        lines.append(
            f"| {row['network']} | {latent} | {row['psnr']:.2f} | {row['ssim']:.4f} | "
            f"{row['encoder_ms']:.0f} ms | {row['decoder_ms']:.0f} ms | "
            f"{row['parameters'] / 1e6:.1f} M |"
        )
    return [*lines, ""]


def networks(result: dict, plot: Path) -> list[str]:
    machine = result["machine"]
    place = machine["accelerator"] or f"{machine['cpu']}, {machine['threads']} threads"
    lines = [
        f"## The network on {place}",
        "",
        f"{result['dtype']}, torch {machine['torch']}, python {machine['python']}, stae "
        f"{machine['stae']} at {result['commit']}. `share` is the rate of operations (as the "
        "published network has them, whatever the form computes) over that of torch's own matrix "
        "product in the same rounds; `x` is the time over that of stae in the same round.",
        "",
        "| pixels, batch | stage | network | ms | p10 to p90 | share | x |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in result["results"]:
        case = one["case"]
        size = f"{case['width']}x{case['height']}, {case['batch']}"
        for timing in sorted(one["timings"], key=lambda timing: timing["stage"] == "decoder"):
            time, share = timing["milliseconds"], timing["share"]["median"]
            slower = timing["slowdown"]["median"]
            lines.append(
                f"| {size} | {timing['stage']} | {timing['network']} | {figure(time['median'])} | "
                f"{figure(time['p10'])} to {figure(time['p90'])} | {share:.0%} | {slower:.2f} |"
            )
    if plot.exists():
        lines += ["", f"![images per second](results/{plot.name})"]
    return [*lines, ""]


def files(result: dict) -> list[str]:
    reading, png, mixed = result["reading"], result["png writing"], result["mixed sizes"]
    lines = [
        f"## Files, on {result['threads']} cores",
        "",
        f"At {result['commit']}.",
        "",
        "| what | against | ratio |",
        "|---|---|---|",
        "| reading 1-megapixel JPEGs to prepared pixels | simplejpeg alone, speed | "
        f"{reading['first over second']:.2f} |",
        "| writing 1-megapixel PNGs | filter, deflate and a plain write, speed | "
        f"{png['first over second']:.2f} |",
        "| encoding 24 images of 24 sizes | 24 of one size, time | "
        f"{mixed['encode']['mixed over equal']:.2f} |",
        f"| decoding them | 24 of one size, time | {mixed['decode']['mixed over equal']:.2f} |",
        "",
        "| peak memory of the process | MB |",
        "|---|---|",
    ]
    lines += [f"| {what} | {size:.0f} |" for what, size in result["memory"].items()]
    return [*lines, ""]


def quality(result: dict) -> list[str]:
    fitted = f", the PCA fitted on `{'`, `'.join(result['fit'])}`" if result["fit"] else ""
    lines = [
        "## Quality",
        "",
        f"Photos of `{result['photos']}`{fitted}. Through float16 latents and 8-bit pixels; PSNR "
        f"and SSIM are means, MSE is pooled. torch {result['torch']}, at {result['commit']}.",
        "",
        "| | PSNR dB | SSIM | MSE |",
        "|---|---|---|---|",
    ]
    for row in result["rows"]:
        figures = row["figures"]
        lines.append(
            f"| {row['name']} | {figures['psnr']:.3f} | {figures['ssim']:.4f} | "
            f"{figures['mse']:.6f} |"
        )
    return [*lines, ""]


def packing(result: dict) -> list[str]:
    lines = [
        f"## Packed batches, on {result['device']}",
        "",
        f"At {result['commit']}: a training step of the tutorial's transformer (width "
        f"{result['width']}, depth {result['depth']}) on as many pictures and tokens.",
        "",
        "| pictures are | tokens | time over that of equal sizes | quartiles |",
        "|---|---|---|---|",
    ]
    for name, one in result["batches"].items():
        low, high = one["quartiles"]
        ratio = f"{one['against equal']:.2f} | {low:.2f} to {high:.2f}"
        lines.append(f"| {name} | {one['tokens']} | {ratio} |")
    return [*lines, ""]


def figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


if __name__ == "__main__":
    main()

"""Writes benchmarks/README.md from what benchmarks/results holds.

python benchmarks/report.py
"""

import json
from pathlib import Path

from cardreport import failures, numbers, products, sharing, stages

HERE = Path(__file__).parent
RESULTS = HERE / "results"

HEAD = """# Measured

Every speed figure in the README comes from here. Runs are compared in pairs within one process or
one script, and medians are shown: quote the ratios, a shared machine's milliseconds come and go.

| script | measures |
|---|---|
| `PYTHONPATH=. python benchmarks/networks.py` | the network beside other autoencoders |
| `python benchmarks/card.py` | all that only an NVIDIA card can show, by other scripts of these |
| `PYTHONPATH=. python benchmarks/agreement.py` | every form of the network beside float32 |
| `PYTHONPATH=. python benchmarks/stages.py` | ceilings, kernels, chunks, inputs, latency |
| `python benchmarks/path.py` | from files to latents and back, by threads |
| `python benchmarks/sharing.py` | several processes on one device |
| `python benchmarks/files.py` | reading, PNG writing, mixed sizes, memory |
| `PYTHONPATH=. python benchmarks/halves.py` | bfloat16 beside float32 on a CPU |
| `PYTHONPATH=. python benchmarks/overhead.py` | what a picture costs beside its network |
| `python benchmarks/train_loop.py PHOTOS` | the training loop beside a bare one on one batch |
| `python benchmarks/quality.py PHOTOS` | PSNR, SSIM and MSE of checkpoints beside the linear PCA |
| `python benchmarks/ablation.py PHOTOS` | what each choice of the training recipe is worth |
| `python benchmarks/packing.py` | a transformer's step on mixed sizes beside one on equal sizes |
| `python benchmarks/family.py TRAIN --score PHOTOS --out FOLDER` | the family, trained alike |
| `PYTHONPATH=. python benchmarks/crashes.py` | what reruns leave after kills at random moments |
| `PYTHONPATH=. python benchmarks/scale.py` | planning, memory and reruns of 100,000 tiny images |
| `python benchmarks/plots.py` | nothing: draws the charts (`pip install matplotlib`) |
| `python benchmarks/report.py` | nothing: writes this page from `results` |

PHOTOS and TRAIN are folders of photos, which do not come with stae. Scored are
[the 24 Kodak photos](https://r0k.us/graphics/kodak/), `kodak`; those that were trained on or fitted
to are from [the card of the built-in checkpoint](../stae_cli/weights/README.md), which lists them.

No figure on this page is from an NVIDIA card unless a section below says so: none was at hand. On a
machine with one, this fills the CUDA tables in under nine minutes, the most telling cases first; it
needs no more than stae itself does, not even an installed stae. `--phases` chooses a part of it:

```console
$ python benchmarks/card.py
$ python benchmarks/plots.py && python benchmarks/report.py
```
"""


def main() -> None:
    (HERE / "README.md").write_text(page(RESULTS))


def page(folder: Path) -> str:
    """The whole report on a folder's records."""
    parts = [HEAD]
    for pattern, section in SECTIONS.items():
        for path in sorted(folder.glob(f"{pattern}.json")):
            result = json.loads(path.read_text())
            plotted = section in PLOTTED
            parts += section(result, path.with_suffix(".png")) if plotted else section(result)
    return "\n".join(parts)


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
    without = f" without fast kernels ({result['unfused']})" if result.get("unfused") else ""
    lines = [
        f"## The network on {place}",
        "",
        f"{result['dtype']}{without}, torch {machine['torch']}, python {machine['python']}, stae "
        f"{machine['stae']} at {result['commit']}. `share` is the rate of operations (as the "
        "published network has them, whatever the form computes) over that of torch's own matrix "
        "product in the same rounds; `x` is the time over that of stae in the same round.",
        "",
        *table_head(result),
    ]
    for one in result["results"]:
        case = one["case"]
        size = f"{case['width']}x{case['height']}, {case['batch']}"
        for timing in sorted(one["timings"], key=lambda timing: timing["stage"] == "decoder"):
            time, share = timing["milliseconds"], timing["share"]["median"]
            slower = timing["slowdown"]["median"]
            memory = timing["memory_bytes"]
            lines.append(
                f"| {size} | {timing['stage']} | {timing['network']} | {figure(time['median'])} | "
                f"{figure(time['p10'])} to {figure(time['p90'])} | {share:.0%} | {slower:.2f} |"
                + (f" {memory / 1e9:.2f} |" if memory is not None else "")
            )
        for name, why in left_out(one).items():
            lines.append(f"| {size} | both | {name} | left out: {why} | | | |")
    lines += products(next((one.get("matmuls", ()) for one in result["results"]), ()))
    if plot.exists():
        lines += ["", f"![milliseconds for a picture against its size](results/{plot.name})"]
    return [*lines, *failures(result), ""]


def left_out(one: dict) -> dict[str, str]:
    """Who could not be timed in a case, and why; older records name them alone."""
    found = one.get("left_out", {})
    return found if isinstance(found, dict) else dict.fromkeys(found, "out of memory")


def table_head(result: dict) -> list[str]:
    """With memory where the device tells it."""
    columns = ["pixels, batch", "stage", "network", "ms", "p10 to p90", "share", "x"]
    timings = [timing for one in result["results"] for timing in one["timings"]]
    if any(timing["memory_bytes"] is not None for timing in timings):
        columns.append("GB")
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def whole_path(result: dict, plot: Path) -> list[str]:
    if not result.get("runs"):
        return ["## The path", *failures(result), ""]
    machine, dtype = result["runs"][0]["machine"], result["runs"][0]["dtype"]
    lines = [
        f"## The path on {machine['accelerator'] or machine['cpu']}",
        "",
        f"`stae bench --path` on JPEGs of 1024x1024, {dtype}, torch {machine['torch']}, at "
        f"{result['commit']}; megapixels per second of each stage alone, with all the machine to "
        "itself, and of all together.",
        "",
        "| command | threads | reading | network | writing | whole | bound by |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in sorted((one for run in result["runs"] for one in run["paths"]), key=by_command):
        speeds = [
            figure(one["pixels"] / one["seconds"][stage] / 1e6)
            for stage in ("reading", "network", "writing", "whole")
        ]
        lines.append(
            f"| {one['command']} | {one['threads']} | {' | '.join(speeds)} | {one['bound_by']} |"
        )
    if plot.exists():
        lines += ["", f"![megapixels per second against threads](results/{plot.name})"]
    return [*lines, *failures(result), ""]


def by_command(one: dict) -> tuple[bool, int]:
    return one["command"] == "decode", one["threads"]


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


def halves(result: dict) -> list[str]:
    times = result["time"]
    return [
        f"## bfloat16 on {result['cpu']}",
        "",
        f"1024x1024, at {result['commit']}: encoding takes {times['encode']:.2f} of float32's "
        f"time, decoding {times['decode']:.2f}. The example photos' latents are off by "
        f"{result['error']:.2%} of their deviation (root mean square).",
        "",
    ]


def overhead(result: dict) -> list[str]:
    return [
        f"## A picture beside its network, on {result['threads']} cores",
        "",
        f"`stae encode` of JPEGs with a network that takes no time, in one process, at "
        f"{result['commit']}: milliseconds for a picture.",
        "",
        "| pixels | latents in | median | least to most |",
        "|---|---|---|---|",
        *(
            f"| {one['side']}x{one['side']} | {'shards' if one['shard_size'] else 'files'} | "
            f"{figure(one['milliseconds'])} | {figure(one['least'])} to {figure(one['most'])} |"
            for one in result["pictures"]
        ),
        "",
    ]


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


SECTIONS = {
    "networks-*": networks, "stages-*": stages, "numbers-*": numbers, "path-*": whole_path,
    "sharing-*": sharing, "files-*": files, "overhead-*": overhead, "halves-*": halves,
    "quality*": quality, "packing-*": packing, "family*": family,
}  # fmt: skip
PLOTTED = (networks, stages, whole_path)


if __name__ == "__main__":
    main()

"""Draws what benchmarks/results holds: time by size, and the path's speed by threads.

pip install matplotlib; python benchmarks/plots.py
"""

import json
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

RESULTS = Path(__file__).parent / "results"
NAMES = {
    "stae": "stae", "unfused": "stae without Triton", "reference": "plain module",
    "taesd": "TAESD", "sdxl": "SDXL's VAE",
}  # fmt: skip
COLOURS = {
    "stae": "#2f6fde", "unfused": "#7aa5ee", "reference": "#6b7686", "taesd": "#c9822b",
    "sdxl": "#3f9a82",
}  # fmt: skip
STAGES = {"reading": "#6b7686", "network": "#2f6fde", "writing": "#c9822b", "whole": "#1c2430"}
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e6e9ee", "axes.axisbelow": True, "lines.linewidth": 1.8,
    "lines.markersize": 4.5, "axes.edgecolor": "#98a2b3", "xtick.color": "#475467",
    "ytick.color": "#475467",
}  # fmt: skip


def main() -> None:
    with mpl.rc_context(STYLE):
        for path in sorted(RESULTS.glob("networks-*.json")):
            save(time_by_size(json.loads(path.read_text())), path.stem)
        for path in sorted(RESULTS.glob("path-*.json")):
            save(path_by_threads(json.loads(path.read_text())), path.stem)


def time_by_size(result: dict) -> Figure:
    """Milliseconds for one picture, both axes logarithmic; alone solid, in batches dashed."""
    figure = Figure(figsize=(8.4, 3.9), layout="constrained")
    machine = result["machine"]
    place = machine["accelerator"] or f"{machine['cpu']}, {machine['threads']} threads"
    figure.suptitle(f"Time for a picture on {place}, {result['dtype']}", x=0.01, ha="left")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, stage in zip(axes, ("encoder", "decoder"), strict=True):
        for name in NAMES:
            for batch, line in zip(batches_of(result), ("-", "--", ":"), strict=False):
                points = sorted(points_of(result, stage, name, batch))
                if points:
                    label = NAMES[name] + (f", {batch} at once" if batch > 1 else "")
                    axis.plot(*zip(*points, strict=True), line, marker="o", color=COLOURS[name],
                              label=label)  # fmt: skip
        axis.set_title(stage, loc="left")
        axis.set_xlabel("pixels on a side")
        scale_logarithmically(axis, [one["case"]["width"] for one in result["results"]])
    axes[0].set_ylabel("ms for a picture")
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def batches_of(result: dict) -> list[int]:
    return sorted({one["case"]["batch"] for one in result["results"]})


def points_of(result: dict, stage: str, name: str, batch: int) -> list[tuple[float, float]]:
    return [
        (one["case"]["width"], timing["milliseconds"]["median"] / batch)
        for one in result["results"]
        for timing in one["timings"]
        if (timing["stage"], timing["network"], one["case"]["batch"]) == (stage, name, batch)
    ]


def scale_logarithmically(axis: Axes, sizes: list[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(sorted(set(sizes)), [str(size) for size in sorted(set(sizes))])
    axis.xaxis.set_minor_locator(NullLocator())


def path_by_threads(result: dict) -> Figure:
    """Megapixels per second of each stage alone, and of the whole."""
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    machine = result["runs"][0]["machine"]
    place = machine["accelerator"] or machine["cpu"]
    figure.suptitle(f"The path of JPEGs of 1024x1024 on {place}", x=0.01, ha="left")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, command in zip(axes, ("encode", "decode"), strict=True):
        paths = [one for run in result["runs"] for one in run["paths"] if one["command"] == command]
        threads = [one["threads"] for one in paths]
        for stage, colour in STAGES.items():
            speeds = [one["pixels"] / one["seconds"][stage] / 1e6 for one in paths]
            label = stage if stage == "whole" else f"{stage} alone"
            line = "-" if stage == "whole" else "--"
            axis.plot(threads, speeds, line, marker="o", color=colour, label=label)
        axis.set_title(f"stae {command}", loc="left")
        axis.set_xlabel("threads that read, and threads that write")
        scale_logarithmically(axis, threads)
    axes[0].set_ylabel("megapixels per second")
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def save(figure: Figure, name: str) -> None:
    figure.savefig(RESULTS / f"{name}.png", dpi=160)


if __name__ == "__main__":
    main()

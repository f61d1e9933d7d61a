"""Draws what benchmarks/results holds: time by size, kernels, and the path's speed by threads.

pip install matplotlib; python benchmarks/plots.py
"""

import json
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from table import short

RESULTS = Path(__file__).parent / "results"
NAMES = {
    "stae": "stae", "unfused": "stae without Triton", "products": "stae, Triton's products",
    "reference": "plain module",
    "taesd": "TAESD", "sdxl": "SDXL's VAE",
}  # fmt: skip
COLOURS = {
    "stae": "#2f6fde", "unfused": "#7aa5ee", "products": "#17408f", "reference": "#6b7686",
    "taesd": "#c9822b", "sdxl": "#3f9a82",
}  # fmt: skip
OTHER = "#8a5fbf"  # a network without a colour of its own
STAGES = {"reading": "#6b7686", "network": "#2f6fde", "writing": "#c9822b", "whole": "#1c2430"}
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e6e9ee", "axes.axisbelow": True, "lines.linewidth": 1.8,
    "lines.markersize": 4.5, "axes.edgecolor": "#98a2b3", "xtick.color": "#475467",
    "ytick.color": "#475467",
}  # fmt: skip


KERNELS = 7  # told apart in a bar


def main() -> None:
    draw_all(RESULTS)


def draw_all(folder: Path) -> None:
    """A chart beside each record that there is one for, if it holds anything."""
    with mpl.rc_context(STYLE):
        for pattern, (draw, held) in CHARTS.items():
            for path in sorted(folder.glob(f"{pattern}.json")):
                result = json.loads(path.read_text())
                if result.get(held):
                    draw(result).savefig(path.with_suffix(".png"), dpi=160)


def time_by_size(result: dict) -> Figure:
    """Milliseconds for one picture, both axes logarithmic; alone solid, in batches dashed."""
    figure = Figure(figsize=(8.4, 3.9), layout="constrained")
    machine = result["machine"]
    place = machine["accelerator"] or f"{machine['cpu']}, {machine['threads']} threads"
    figure.suptitle(f"Time for a picture on {place}, {result['dtype']}", x=0.01, ha="left")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, stage in zip(axes, ("encoder", "decoder"), strict=True):
        for name in networks_of(result):
            for batch, line in zip(batches_of(result), ("-", "--", ":"), strict=False):
                points = sorted(points_of(result, stage, name, batch))
                if points:
                    label = NAMES.get(name, name) + (f", {batch} at once" if batch > 1 else "")
                    colour = COLOURS.get(name, OTHER)
                    axis.plot(*zip(*points, strict=True), line, marker="o", color=colour,
                              label=label)  # fmt: skip
        axis.set_title(stage, loc="left")
        axis.set_xlabel("pixels on a side")
        scale_logarithmically(axis, [one["case"]["width"] for one in result["results"]])
    axes[0].set_ylabel("ms for a picture")
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if axes[1].lines:
        axes[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def networks_of(result: dict) -> list[str]:
    """Those that were timed, the known ones in their order."""
    timed = {timing["network"] for one in result["results"] for timing in one["timings"]}
    return [name for name in NAMES if name in timed] + sorted(timed - set(NAMES))


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
    runs = sorted(result["runs"], key=lambda run: run["paths"][0]["threads"])
    machine = runs[0]["machine"]
    place = machine["accelerator"] or machine["cpu"]
    figure.suptitle(f"The path of JPEGs of 1024x1024 on {place}", x=0.01, ha="left")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, command in zip(axes, ("encode", "decode"), strict=True):
        paths = [one for run in runs for one in run["paths"] if one["command"] == command]
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


def kernels_and_chunks(result: dict) -> Figure:
    """Each call's kernels as a bar, the costliest first; and its time by the rows at once."""
    calls, chunks = result["kernels"], result.get("chunks", {})
    figure = Figure(figsize=(8.4, 1.6 + 0.55 * len(calls)), layout="constrained")
    machine, case = result["machine"], result["case"]
    place = machine["accelerator"] or machine["cpu"]
    figure.suptitle(
        f"{case['width']}x{case['height']}, {case['batch']} at once, on {place}, {result['dtype']}",
        x=0.01, ha="left",
    )  # fmt: skip
    bars, lines = figure.subplots(1, 2, width_ratios=(3, 2))
    for row, (call, found) in enumerate(calls.items()):
        draw_bar(bars, row, call, found)
    bars.set_title("ms in kernels, the costliest first", loc="left")
    bars.set_yticks([])
    bars.set_ylim(len(calls) - 0.5, -0.7)
    draw_chunks(lines, chunks)
    return figure


def draw_bar(axis: Axes, row: int, call: str, found: dict) -> None:
    start, shades = 0.0, mpl.colormaps["Blues_r"]
    shown = found["kernels"][:KERNELS]
    times = [kernel["microseconds"] / 1000 for kernel in shown]
    rest = max(0.0, found["kernel_milliseconds"] - sum(times))
    for index, time in enumerate([*times, rest]):
        colour = "#e6e9ee" if index == len(shown) else shades(0.2 + index / (KERNELS + 2))
        axis.barh(row, time, 0.45, start, color=colour)
        start += time
    costliest = f": {short(shown[0]['name'])[:40]}" if shown else ""
    axis.text(0, row - 0.27, f" {call}{costliest}", fontsize=7, va="bottom")


def draw_chunks(axis: Axes, chunks: dict) -> None:
    for stage, colour in (("encode", "#2f6fde"), ("decode", "#c9822b")):
        points = [(int(n.split()[0]), t["median"]) for n, t in chunks.items() if stage in n]
        if points:
            axis.plot(*zip(*points, strict=True), marker="o", color=colour, label=stage)
    sizes = sorted({int(name.split()[0]) for name in chunks})
    axis.set_title("ms by rows at once", loc="left")
    if sizes:
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False)


CHARTS = {
    "networks-*": (time_by_size, "results"),
    "stages-*": (kernels_and_chunks, "kernels"),
    "path-*": (path_by_threads, "runs"),
}


if __name__ == "__main__":
    main()

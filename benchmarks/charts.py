"""The charts of the page: time by size, and the path's speed by threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stae_cli import charts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = (11.0, 4.2)  # of the panels, in inches
COLOURS = {
    "stae": charts.BLUE,
    "unfused": "#7aa5ee",
    "reference": "#6b7686",
    "compile": "#a3acb8",
    "onnxruntime": "#b8577f",
    "openvino": "#7d5ba6",
    "taesd": "#c9822b",
    "sdxl": "#3f9a82",
}
NAMES = {
    "unfused": "without Triton",
    "reference": "plain module",
    "compile": "torch.compile",
    "openvino": "OpenVINO",
    "taesd": "TAESD",
    "sdxl": "SDXL's VAE",
}
STAGES = {"reading": "#6b7686", "network": charts.BLUE, "writing": "#c9822b", "whole": charts.INK}
OTHER = "#8a5fbf"  # a network without a colour of its own


@dataclass(frozen=True)
class Line:
    """A line through points (x, y), `width` points wide; lines of one name share a label."""

    name: str
    points: list[tuple[float, float]]
    colour: str
    width: float


def time_by_size(result: dict) -> Figure:
    """Milliseconds for a picture, both axes logarithmic; in larger batches thinner."""
    batches = sorted({one["case"]["batch"] for one in result["results"]})
    points: dict[str, dict[tuple[str, int], list]] = {"encoder": {}, "decoder": {}}
    for one in result["results"]:
        batch = one["case"]["batch"]
        for timing in one["timings"]:
            point = (one["case"]["width"], timing["milliseconds"]["median"] / batch)
            points[timing["stage"]].setdefault((timing["network"], batch), []).append(point)
    panels = {
        stage: [
            Line(
                NAMES.get(name, name),
                sorted(line),
                COLOURS.get(name, OTHER),
                2.4 if batch == batches[0] else 1,
            )
            for (name, batch), line in found.items()
        ]
        for stage, found in points.items()
    }
    title = f"Milliseconds for a picture by its side in pixels, {result['dtype']}"
    return chart(title, place(result["machine"]), panels)


def speed_by_threads(result: dict) -> Figure:
    """Megapixels per second of each stage alone, and of the whole, which is drawn below them."""
    panels = {
        command: [
            Line(
                "whole" if stage == "whole" else f"{stage} alone",
                [
                    (one["threads"], one["pixels"] / one["seconds"][stage] / 1e6)
                    for one in paths_of(result)
                    if one["command"] == command
                ],
                colour,
                6 if stage == "whole" else 1.6,
            )
            for stage, colour in STAGES.items()
        ]
        for command in ("encode", "decode")
    }
    machine = result["runs"][0]["machine"]
    return chart("Megapixels per second by threads for files", place(machine), panels)


def chart(title: str, subtitle: str, panels: dict[str, list[Line]]) -> Figure:
    """Two panels with the same logarithmic axes, and one legend."""
    figure = charts.new_figure(*SIZE, title=title, subtitle=subtitle)
    across = {x for lines in panels.values() for line in lines for x, _ in line.points}
    labelled = {}
    for axes, (name, lines) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        charts.label_logarithmic(axes, ticks=sorted(across))
        axes.set_title(name)
        axes.tick_params(labelleft=True)
        for line in lines:
            style = {"color": line.colour, "linewidth": line.width, "marker": "o"}
            style["zorder"] = 3 - line.width / 10  # thick ones below
            (drawn,) = axes.plot(*zip(*line.points, strict=True), **style)
            labelled.setdefault(line.name, drawn)
    place = {"loc": "upper left", "bbox_to_anchor": (1.03, 1), "borderaxespad": 0}
    axes.legend(labelled.values(), labelled, **place)
    return figure


def paths_of(result: dict) -> list[dict]:
    """By the number of threads."""
    found = [one for run in result["runs"] for one in run["paths"]]
    return sorted(found, key=lambda one: one["threads"])


def place(machine: dict) -> str:
    return machine["accelerator"] or f"{machine['cpu']}, {machine['threads']} threads"

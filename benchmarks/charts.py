"""The charts of the page: time by size, and the path's speed by threads."""

from stae_cli.images.drawing import FAINT, Axis, Canvas, Frame, Line

SIZE = (780, 360)  # of a chart, in points
FRAMES = (Frame(64, 66, 316, 306), Frame(394, 66, 646, 306))
COLOURS = {
    "stae": "#2f6fde",
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
STAGES = {"reading": "#6b7686", "network": "#2f6fde", "writing": "#c9822b", "whole": "#1c2430"}
OTHER = "#8a5fbf"  # a network without a colour of its own
TICKS = [digit * 10.0**power for power in range(-3, 7) for digit in (1, 3)]


def time_by_size(result: dict) -> Canvas:
    """Milliseconds for a picture, both axes logarithmic; in larger batches thinner."""
    batches = sorted({one["case"]["batch"] for one in result["results"]})
    points: dict[str, dict[tuple[str, int], list]] = {"encoder": {}, "decoder": {}}
    for one in result["results"]:
        batch = one["case"]["batch"]
        for timing in one["timings"]:
            point = (one["case"]["width"], timing["milliseconds"]["median"] / batch)
            points[timing["stage"]].setdefault((timing["network"], batch), []).append(point)
    names = [*dict.fromkeys(name for name, _ in points["encoder"])]
    colours = {name: COLOURS.get(name, OTHER) for name in names}
    panels = {
        stage: [
            Line(sorted(line), colours[name], 2 if batch == batches[0] else 1, marked=True)
            for (name, batch), line in found.items()
        ]
        for stage, found in points.items()
    }
    legend = {NAMES.get(name, name): colour for name, colour in colours.items()}
    return chart(
        f"ms for a picture by its side in pixels, {result['dtype']}",
        place(result["machine"]),
        panels,
        legend,
    )


def speed_by_threads(result: dict) -> Canvas:
    """Megapixels per second of each stage alone, and of the whole, which is drawn below them."""
    panels = {
        command: [
            Line(
                [
                    (one["threads"], one["pixels"] / one["seconds"][stage] / 1e6)
                    for one in paths_of(result)
                    if one["command"] == command
                ],
                colour,
                4 if stage == "whole" else 1,
                marked=True,
            )
            for stage, colour in reversed(STAGES.items())
        ]
        for command in ("encode", "decode")
    }
    machine = result["runs"][0]["machine"]
    legend = {"whole" if name == "whole" else f"{name} alone": c for name, c in STAGES.items()}
    title = "Megapixels per second by threads for files"
    return chart(title, place(machine), panels, legend)


def chart(
    title: str, subtitle: str, panels: dict[str, list[Line]], legend: dict[str, str]
) -> Canvas:
    """Two panels with the same logarithmic axes."""
    canvas = Canvas(*SIZE)
    canvas.text((FRAMES[0].left, 20), title, 15)
    canvas.text((FRAMES[0].left, 38), subtitle, 11, FAINT)
    points = [point for lines in panels.values() for line in lines for point in line.points]
    across = sorted({x for x, _ in points})
    low, high = min(y for _, y in points), max(y for _, y in points)
    low = max(tick for tick in TICKS if tick <= low)
    high = min(tick for tick in TICKS if tick >= high)
    y = Axis(low, high, [tick for tick in TICKS if low <= tick <= high], logarithmic=True)
    x = Axis(across[0], across[-1], across, logarithmic=True)
    for frame, (name, lines) in zip(FRAMES, panels.items(), strict=True):
        canvas.text((frame.left, 56), name, 12)
        canvas.plot(frame, x, y, lines)
    for row, (name, colour) in enumerate(legend.items()):
        at = 70 + 18 * row
        canvas.line([(660, at), (674, at)], colour, 2)
        canvas.text((680, at), name, 11)
    return canvas


def paths_of(result: dict) -> list[dict]:
    """By the number of threads."""
    found = [one for run in result["runs"] for one in run["paths"]]
    return sorted(found, key=lambda one: one["threads"])


def place(machine: dict) -> str:
    return machine["accelerator"] or f"{machine['cpu']}, {machine['threads']} threads"

"""Writes benchmarks/README.md and its charts from the records in benchmarks/results."""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.charts import STAGES, paths_of, place, speed_by_threads, time_by_size
from benchmarks.record import RESULTS, options
from stae_cli import charts

HEAD = """# Measurements

Every figure on speed and quality in the documents comes from a script in this folder. Each script
warms up, times what it compares in the same shuffled rounds, and records medians and spreads in
`results`, together with the machine, the versions and the commit. Compare ratios: the milliseconds
of a shared machine vary. A commit that ends in `-dirty` had changes that were not committed yet.

| script | measures |
|---|---|
| `python -m benchmarks.networks` | other engines, other autoencoders; `--avx2`: without AVX-512 |
| `python -m benchmarks.agreement` | every form of the codec beside float32: numbers and time |
| `python -m benchmarks.path` | from files to latents and back, by the number of threads |
| `python -m benchmarks.card` | these three on an NVIDIA card |
| `python -m benchmarks.files` | reading, PNG writing, mixed sizes, and memory |
| `python -m benchmarks.overhead` | what a picture costs beside its network |
| `python -m benchmarks.export` | exports of small latents: pictures a second, memory |
| `python -m benchmarks.pages` | the page of `roundtrip` in a browser, and what making it costs |
| `python -m benchmarks.neighbours` | the network beside busy programs |
| `python -m benchmarks.quality PHOTOS` | PSNR, SSIM and MSE of checkpoints beside the linear PCA |
| `python -m benchmarks.family TRAIN --score PHOTOS --out FOLDER` | the family, trained alike |
| `python -m benchmarks.report` | nothing: it writes this page and its charts from `results` |

Run them from the root of a clone; each takes `--help`. PHOTOS and TRAIN are folders of photos,
which do not come with stae. `kodak` holds
[the 24 Kodak photos](https://r0k.us/graphics/kodak/); the photos for training and fitting are
listed on [the card of the built-in checkpoint](../stae_cli/weights/README.md).

No figure on this page is from an NVIDIA card unless its section says so.
`python -m benchmarks.card` measures one in about ten minutes.
"""
Record = dict  # what a script wrote


def main(argv: Sequence[str] | None = None) -> None:
    parser = options("report", __doc__)
    parser.add_argument("--page", type=Path, default=RESULTS.parent / "README.md", help="to write")
    given = parser.parse_args(argv)
    for pattern, draw in CHARTS.items():
        for path in sorted(given.results.glob(f"{pattern}.json")):
            result = json.loads(path.read_text())
            if result.get("results") or result.get("runs"):
                made = partial(draw, result)
                charts.write(path.with_suffix(".png"), made, hint="give another `--results`")
    given.page.write_text("\n".join([HEAD, *tables(given.results)]))


def tables(folder: Path, kind: str = "*") -> list[str]:
    """The sections on a folder's records, or on those of a kind of device alone."""
    lines: list[str] = []
    for name, section in SECTIONS.items():
        for path in sorted(folder.glob(f"{name.replace('*', kind)}.json")):
            result = json.loads(path.read_text())
            lines += [*section(result), *failures(result)]
            chart = path.with_suffix(".png")
            lines += [f"![chart of the same](results/{chart.name})", ""] * chart.exists()
    return lines


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """In Markdown, with an empty line behind it."""
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines] + [""]


def networks(result: Record) -> list[str]:
    rows = []
    for one in result["results"]:
        case = f"{one['case']['width']}x{one['case']['height']}, {one['case']['batch']}"
        for timing in sorted(one["timings"], key=lambda timing: timing["stage"] == "decoder"):
            time, memory = timing["milliseconds"], timing["memory_bytes"]
            ratios = f"{timing['share']['median']:.0%}", f"{timing['slowdown']['median']:.2f}"
            gigabytes = "" if memory is None else f"{memory / 1e9:.2f}"
            row = (case, timing["stage"], timing["network"], figure(time), ends(time))
            rows.append((*row, *ratios, gigabytes))
        for name, why in one.get("left_out", {}).items():
            rows.append((case, "both", name, f"left out: {why}", "", "", "", ""))
    columns = ["pixels, batch", "stage", "network", "ms", "p10 to p90", "share", "x", "GB"]
    if all(not row[-1] for row in rows):  # memory is known on CUDA only
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    beyond = [f"- {name} {why}." for name, why in result.get("beyond_limits", {}).items()]
    without = f" without fast kernels ({result['unfused']})" if result.get("unfused") else ""
    return [
        f"## The network on {place(result['machine'])}",
        "",
        f"{result['dtype']}{without}. {made(result)} `share` is the rate of operations (as the "
        "network is defined, whatever the form computes) over that of torch's own matrix product "
        "in the same rounds; `x` is the time over that of stae in the same round.",
        "",
        *([*beyond, ""] if beyond else []),
        *table(columns, rows),
    ]


def agreement(result: Record) -> list[str]:
    rows = []
    for form, found in result["forms"].items():
        latents, pictures, time = found["latents"], found["pictures"], found.get("time", {})
        why = f" ({found['unfused because']})" if found["unfused because"] else ""
        apart = f"{latents['relative']:.2%}", f"{latents['largest']:.1e}"
        ratios = (ratio(time.get(stage)) for stage in ("encode", "decode"))
        same = "the same" if found["same bytes alone"] else "others"
        pixels = f"{pictures['relative']:.2%}", f"{pictures['largest']:.1e}"
        rows.append((form + why, *apart, *pixels, same, *ratios))
    columns = ["form", "latents, rms", "largest", "pictures, rms", "largest", "bytes alone"]
    return [
        f"## Forms of the codec on {place(result['machine'])}",
        "",
        f"{made(result)} Differences from float32 on the CPU, of the example photos; root mean "
        "squares are shares of the deviation. `bytes alone` says whether a photo alone gives the "
        "bytes that it gives among others. Times are those of "
        f"{result['side']}x{result['side']} over the first form's in the same rounds, with the "
        "10th and 90th percentile.",
        "",
        *table([*columns, "encode, time", "decode, time"], rows),
    ]


def path(result: Record) -> list[str]:
    runs = result["runs"]
    if not runs:
        return ["## The path", ""]
    stages = [*STAGES]
    rows = [
        (
            one["command"],
            one["threads"],
            *(figure(one["pixels"] / one["seconds"][stage] / 1e6) for stage in stages),
            one["bound_by"],
        )
        for one in sorted(paths_of(result), key=lambda one: one["command"] == "decode")
    ]
    side = result.get("side", 1024)
    return [
        f"## The path on {place(runs[0]['machine'])}",
        "",
        f"`stae bench --path` on JPEGs of {side}x{side}, {runs[0]['dtype']}. "
        f"{made(result | {'machine': runs[0]['machine']})} Megapixels per second of each stage "
        "alone, with the whole machine to itself, and of all together.",
        "",
        *table(["command", "threads", *stages, "bound by"], rows),
    ]


def files(result: Record) -> list[str]:
    mixed = result["mixed sizes"]
    pairs = (
        ("reading 1-megapixel JPEGs", "simplejpeg alone, speed", result["reading"]),
        ("writing 1-megapixel PNGs", "filter, deflate, plain write; speed", result["png writing"]),
        ("encoding images of many sizes", "of one size, time", mixed["encode"]),
        ("decoding them", "of one size, time", mixed["decode"]),
    )
    rows = [
        (what, against, ratio(next(value for key, value in pair.items() if " over " in key)))
        for what, against, pair in pairs
    ]
    return [
        f"## Files, on {result['threads']} cores",
        "",
        made(result),
        "",
        *table(["what", "against", "ratio"], rows),
        *table(["peak memory of the process", "MB"], result["memory"].items()),
    ]


def overhead(result: Record) -> list[str]:
    rows = []
    for one in result["pictures"]:
        time = one["milliseconds"]
        old = {"p10": one.get("least"), "p90": one.get("most")}  # of records without percentiles
        spread = ends(time if isinstance(time, dict) else old)
        kind = "shards" if one["shard_size"] else "files"
        rows.append((f"{one['side']}x{one['side']}", kind, figure(time), spread))
    for one in result.get("floor", ()):
        time, kind = one["milliseconds"], "none: decoded by simplejpeg alone"
        rows.append((f"{one['side']}x{one['side']}", kind, figure(time), ends(time)))
    for one in result.get("processes", ()):
        kind = "shards" if one["shard_size"] else "files"
        kind += f", by {one['processes']} processes, without their start"
        rows.append(("256x256", kind, figure(one["milliseconds"]), ""))
    return [
        f"## A picture beside its network, on {result['threads']} cores",
        "",
        "`stae encode` of JPEGs with a network that takes no time, in one process unless more are "
        f"named: milliseconds for a picture. {made(result)}",
        "",
        *table(["pixels", "latents in", "median", "spread"], rows),
    ]


def export(result: Record) -> list[str]:
    rows = [
        (one["format"], f"{one['latents_per_second']:,.0f}", f"{one['peak_bytes'] / 1e6:,.0f}")
        for one in result["formats"]
    ]
    return [
        f"## `stae export` of {result['latents']:,} pictures",
        "",
        f"A latent of {'x'.join(map(str, result['shape']))} and a flip each, from shards, read and "
        f"written by one process. {made(result)}",
        "",
        *table(["format", "pictures per second", "peak memory, MB"], rows),
    ]


def pages(result: Record) -> list[str]:
    trip = result["roundtrip"]
    keys = ("first_picture_ms", "longest_task_loading_ms", "longest_task_scrolling_ms")
    rows = [
        (
            one["name"],
            *(f"{one[key]:.0f}" for key in keys),
            f"{one['frames_per_second_scrolling']:.0f}",
            f"{one['sorting_ms']:.0f}",
        )
        for one in result["windows"]
    ]
    titles = ["first picture", "longest task loading", "longest task scrolling"]
    return [
        f"## A report of {result['pictures']:,} pictures in a browser",
        "",
        f"A page of {result['bytes'] / 1e6:.2f} MB in headless Chromium, which draws without a "
        f"graphics card; from disk, scrolled from top to bottom in {result['seconds']:g} s. "
        "Milliseconds; tasks below 50 count as 0. A slow phone's processor is slowed down four "
        f"times. {made(result)}",
        "",
        *table(["window", *titles, "frames a second", "sorting"], rows),
        f"`stae roundtrip` of {trip['photos']} photos with its report took "
        f"{trip['roundtrip_s']:.1f} s, `encode` {trip['encode_s']:.1f} s and `decode` "
        f"{trip['decode_s']:.1f} s: {trip['ratio']:.2f} times both together.",
        "",
    ]


def neighbours(result: Record) -> list[str]:
    rows = [
        (
            *(one[key] for key in ("network", "stage", "neighbours")),
            figure(one["milliseconds"]),
            ratio(one["over alone"]),
            figure(one["fair"]),
        )
        for one in result["found"]
    ]
    return [
        f"## Beside busy programs, on {place(result['machine'])}",
        "",
        f"{result['side']}x{result['side']}, float32, while so many other processes keep a core "
        "busy each. `over alone` is the time over that without them; `fair` is what it would be "
        f"if the scheduler shared {result['cores']} cores equally. {made(result)}",
        "",
        *table(["network", "stage", "neighbours", "ms", "over alone", "fair"], rows),
    ]


def quality(result: Record) -> list[str]:
    fitted = f", the PCA fitted on `{'`, `'.join(result['fit'])}`" if result["fit"] else ""
    return [
        "## Quality",
        "",
        f"Photos of `{result['photos']}`{fitted}. Through float16 latents and 8-bit pixels; PSNR "
        f"and SSIM are means, MSE is pooled. {made(result)}",
        "",
        *quality_table(result["rows"]),
    ]


def quality_table(rows: Sequence[Record]) -> list[str]:
    lpips = any(row["lpips"] is not None for row in rows)
    cells = []
    for row in rows:
        found = row["figures"]
        ssim = "-" if found["ssim"] is None else f"{found['ssim']:.4f}"
        cell = (row["name"], f"{found['psnr']:.3f}", ssim, f"{found['mse']:.6f}")
        cells.append((*cell, *([f"{row['lpips']:.4f}"] if lpips else [])))
    return table(["", "PSNR dB", "SSIM", "MSE", *["LPIPS"] * lpips], cells)


def family(result: Record) -> list[str]:
    side = result.get("side", 1024)
    return [
        "## The family, trained alike",
        "",
        f"{result['steps']} steps of {result['batch']} crops of {result['crop']} pixels each, from "
        f"the linear start; scored on `{result['scored_on']}`, timed at {side}x{side}. "
        f"{made(result)}",
        "",
        *family_table(result["rows"]),
    ]


def family_table(rows: Sequence[Record]) -> list[str]:
    columns = ["network", "latent", "PSNR dB", "SSIM", "encoder", "decoder", "GFLOP", "parameters"]
    cells = [
        (
            row["network"],
            "x".join(map(str, row["latent"])),
            f"{row['psnr']:.2f}",
            f"{row['ssim']:.4f}",
            f"{row['encoder_ms']:.0f} ms",
            f"{row['decoder_ms']:.0f} ms",
            f"{row['encoder_flops'] / 1e9:.0f} + {row['decoder_flops'] / 1e9:.0f}",
            f"{row['parameters'] / 1e6:.1f} M",
        )
        for row in rows
    ]
    return table(columns, cells)


def failures(result: Record) -> list[str]:
    """What could not be measured, and why."""
    lines = [f"- {what}: {why}" for what, why in result.get("failures", {}).items()]
    return ["Not measured:", "", *lines, ""] if lines else []


def made(result: Record) -> str:
    """The versions that a record is of; older records do not have all of them."""
    machine = result.get("machine", {"torch": result.get("torch")})
    versions = {key: machine.get(key) for key in ("torch", "python", "stae")}
    versions |= result.get("versions", {})
    words = [f"{name} {version}" for name, version in versions.items() if version]
    used = f" with {', '.join(words)}" if words else ""
    return f"Measured at commit {result['commit']}{used}."


def figure(value: float | Record) -> str:
    """A number, or the median of a spread, in three digits or more."""
    value = value["median"] if isinstance(value, dict) else value
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def ends(spread: Record) -> str:
    return f"{figure(spread['p10'])} to {figure(spread['p90'])}"


def ratio(value: float | Record | None) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.2f} ({value['p10']:.2f} to {value['p90']:.2f})"
    return "" if value is None else f"{value:.2f}"


SECTIONS: dict[str, Callable[[Record], list[str]]] = {
    "networks-*": networks,
    "agreement-*": agreement,
    "path-*": path,
    "files-*": files,
    "overhead-*": overhead,
    "export-*": export,
    "pages-*": pages,
    "neighbours-*": neighbours,
    "quality": quality,
    "family": family,
}
CHARTS = {"networks-*": time_by_size, "path-*": speed_by_threads}


if __name__ == "__main__":
    main()

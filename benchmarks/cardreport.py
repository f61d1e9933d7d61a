"""The sections of the report on what `card.py` records: numbers, stages, processes on one card."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from table import figure

SHOWN_KERNELS = 12


def numbers(result: dict) -> list[str]:
    machine = result["machine"]
    lines = [
        f"## Numbers on {machine['accelerator'] or machine['cpu']}",
        "",
        f"torch {machine['torch']}, at {result['commit']}. Differences are from float32 on the "
        "CPU, for the example photos and the built-in weights; `company` says whether each photo "
        "alone gave the bytes that it gave among others, and how many rows are computed at once.",
        "",
        "| form | latents, rms | largest | pictures, rms | largest | company |",
        "|---|---|---|---|---|---|",
    ]
    for form, found in result["numbers"].items():
        same = "same bytes" if found["same bytes alone"] else "other bytes"
        rows = ", ".join(map(str, found["rows that are computed alone"] or ("not known",)))
        why = found["unfused because"]
        lines.append(
            f"| {form}{f' ({why})' if why else ''} | {found['latents']['rms']:.1e} | "
            f"{found['latents']['largest']:.1e} | {found['pictures']['rms']:.1e} | "
            f"{found['pictures']['largest']:.1e} | {same} ({rows}) |"
        )
    return [*lines, *failures(result), ""]


def failures(result: dict) -> list[str]:
    """What could not be measured, and why."""
    lines = [f"- {what}: {why}" for what, why in result.get("failures", {}).items()]
    lines += [f"- {what}: no time was left" for what in result.get("unstarted", ())]
    return ["", "Not measured:", "", *lines] if lines else []


def products(matmuls: Sequence[dict]) -> list[str]:
    """The matrix products beside which shares are told."""
    if not matmuls:
        return []
    rates = (
        f"{'x'.join(map(str, each['shape']))} {figure(each['tflops']['median'])}"
        for each in matmuls
    )
    return ["", f"torch's own products, in TFLOP/s: {', '.join(rates)}."]


def stages(result: dict, plot: Path) -> list[str]:
    """Ceilings, chunks, inputs, latency and kernels, as far as they are there."""
    machine, case = result["machine"], result["case"]
    software = result.get("software", {})
    about = "; ".join(f"{name}: {value}" for name, value in software.items() if name != "state")
    lines = [
        f"## Where the time goes on {machine['accelerator'] or machine['cpu']}",
        "",
        f"{case['width']}x{case['height']}, {case['batch']} at once, {result['dtype']}, at "
        f"{result['commit']}. {about}",
        *ceilings(result.get("ceilings", {})),
        *chunks(result.get("chunks", {})),
        *tiles(result.get("tiles", {})),
        *pictures(result.get("pictures", {})),
        *latency(result.get("latency", {})),
        *kernels(result.get("kernels", {})),
    ]
    if plot.exists():
        lines += ["", f"![kernels and chunks](results/{plot.name})"]
    return [*lines, *failures(result), ""]


def ceilings(found: dict) -> Iterable[str]:
    if not found:
        return
    yield from ("", "| alone | median | p10 to p90 |", "|---|---|---|")
    if "copy" in found:
        size, speed = found["copy"]["bytes"] / 1e9, found["copy"]["gigabytes_per_second"]
        yield f"| copy of {size:.1f} GB, read and written | {rate(speed, 'GB/s')}"
    for name, words in (("conv", ""), ("conv, tuned", ", cuDNN's choice by trial")):
        if name in found:
            shape = "x".join(map(str, found[name]["shape"]))
            yield f"| 3x3 convolution of {shape}{words} | {rate(found[name]['tflops'], 'TFLOP/s')}"
    for each in found.get("matmuls", ()):
        shape = "x".join(map(str, each["shape"]))
        yield f"| product {shape} | {rate(each['tflops'], 'TFLOP/s')}"


def rate(speed: dict, unit: str) -> str:
    low, high = figure(speed["p10"]), figure(speed["p90"])
    return f"{figure(speed['median'])} {unit} | {low} to {high} |"


def chunks(found: dict) -> Iterable[str]:
    """Names are `ROWS encode` and `ROWS decode`."""
    if not found:
        return
    yield from ("", "| rows at once | encode, ms | decode, ms |", "|---|---|---|")
    for rows in dict.fromkeys(name.split()[0] for name in found):
        cells = (found.get(f"{rows} {stage}") for stage in ("encode", "decode"))
        times = (figure(one["median"]) if one else "" for one in cells)
        yield f"| {rows} | {' | '.join(times)} |"


def tiles(found: dict) -> Iterable[str]:
    """Names are `PRODUCT CUT`."""
    if not found:
        return
    yield from (
        "",
        "| product | rows x columns x warps x stages x programs | ms |",
        "|---|---|---|",
    )
    for name, one in found.items():
        product, cut = name.split()
        yield f"| {product} | {cut} | {figure(one['median'])} |"


def pictures(found: dict) -> Iterable[str]:
    if found:
        times = (f"{name} {figure(one['median'])} ms" for name, one in found.items())
        yield from ("", f"Encoding pictures given as {', as '.join(times)}.")


def latency(found: dict) -> Iterable[str]:
    if not found:
        return
    side = next(iter(found.values()))["side"]
    yield from (
        "", f"| one picture of {side}x{side} | host waits, us | p10 to p90 | back to back, us |",
        "|---|---|---|---|",
    )  # fmt: skip
    for call, one in found.items():
        host = one["host_microseconds"]
        yield (
            f"| {call} | {figure(host['median'])} | {figure(host['p10'])} to "
            f"{figure(host['p90'])} | {figure(one['back_to_back_microseconds'])} |"
        )


def kernels(found: dict) -> Iterable[str]:
    """The costliest of each call."""
    for call, one in found.items():
        yield from (
            "",
            f"{call}: {figure(one['milliseconds']['median'])} ms, of which "
            f"{figure(one['kernel_milliseconds'])} in {one['started']:.0f} kernels.",
            "",
            "| kernel | us | starts |",
            "|---|---|---|",
        )
        for kernel in one["kernels"][:SHOWN_KERNELS]:
            name = kernel["name"][:120].replace("|", "\\|")
            yield f"| `{name}` | {figure(kernel['microseconds'])} | {figure(kernel['count'])} |"


def sharing(result: dict) -> list[str]:
    lines = [
        f"## Several processes on one device, {result.get('cores')} cores",
        "",
        f"`stae encode` of JPEGs of 1024x1024 and of 256x256, at {result['commit']}; images per "
        "second without what starting takes.",
        "",
        "| processes | start | 1024x1024 | 256x256 |",
        "|---|---|---|---|",
    ]
    for run in result.get("runs", ()):
        speeds = (run[kind]["images_per_second"] for kind in ("large", "small"))
        cells = " | ".join("too quick to tell" if s is None else figure(s) for s in speeds)
        lines.append(f"| {run['devices']} | {run['start_seconds']:.1f} s | {cells} |")
    return [*lines, *failures(result), ""]

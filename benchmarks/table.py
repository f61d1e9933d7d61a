"""What a run of `card.py` found, as text of a few kilobytes."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

SHOWN_KERNELS = 12
OTHERS_KERNELS = 6  # of the codec's variants
NAME = 62  # characters of a kernel's name
COMMON = r"^void |\(anonymous namespace\)::|<unnamed>::|at::native::|c10::|at::"
LONG = 160  # characters of a reason


def table(folder: Path, kind: str, phases: Sequence[str]) -> str:
    """Of the records of these phases on a kind of device."""
    lines: list[str] = []
    for phase in phases:
        path = folder / f"{phase}-{kind}.json"
        try:
            lines += section(phase, json.loads(path.read_text()) if path.exists() else {})
        except Exception as error:  # noqa: BLE001  # one odd record must not hide the others
            lines += ["", f"{path.name} is not as expected: {error!r}"]
    return "\n".join(lines) + "\n"


def section(phase: str, result: dict) -> list[str]:
    return [
        "",
        f"== {phase} ({result.get('commit', 'nothing recorded')})",
        *SECTIONS[phase](result),
        *(f"FAILED {what}: {why[:LONG]}" for what, why in result.get("failures", {}).items()),
        *(f"no time for {what}" for what in result.get("unstarted", ())),
    ]


def numbers(result: dict) -> Iterable[str]:
    for form, found in result.get("numbers", {}).items():
        same = "same bytes" if found["same bytes alone"] else "OTHER BYTES"
        why = f" ({found['unfused because']})" if found["unfused because"] else ""
        yield (
            f"{form:18} latents rms {found['latents']['rms']:.1e} largest "
            f"{found['latents']['largest']:.1e}, pictures {found['pictures']['rms']:.1e} "
            f"{found['pictures']['largest']:.1e}, {same}, rows "
            f"{found.get('rows that are computed alone')}{why}"
        )


def stages(result: dict) -> Iterable[str]:
    yield from software(result.get("software", {}))
    yield from ceilings(result.get("ceilings", {}))
    cuts = ("tiles", "rows x columns x warps x stages x programs")
    for part, unit in (("chunks", "rows"), ("pictures", "given"), cuts):
        if result.get(part):
            found = (f"{name} {figure(one['median'])}" for name, one in result[part].items())
            yield f"{part} ({unit}, ms): {', '.join(found)}"
    if "latency" in result:
        found = (
            f"{name} {figure(one['host_microseconds']['median'])} "
            f"({figure(one['back_to_back_microseconds'])})"
            for name, one in result["latency"].items()
        )
        yield f"one small picture, host us (back to back): {', '.join(found)}"
    for call, found in result.get("kernels", {}).items():
        yield from kernels(call, found)


def software(facts: dict) -> Iterable[str]:
    if facts:
        yield "; ".join(f"{name}: {value}" for name, value in facts.items() if name != "state")
    if "state" in facts:
        yield f"state: {facts['state']}"


def ceilings(found: dict) -> Iterable[str]:
    if "copy" in found:
        yield f"copy: {spread(found['copy']['gigabytes_per_second'])} GB/s"
    for name in ("conv", "conv, tuned"):
        if name in found:
            shape = "x".join(map(str, found[name]["shape"]))
            yield f"{name} 3x3 of {shape}: {spread(found[name]['tflops'])} TFLOP/s"
    yield from products(found.get("matmuls", ()))


def products(matmuls: Sequence[dict]) -> Iterable[str]:
    rates = [f"{'x'.join(map(str, m['shape']))} {spread(m['tflops'])}" for m in matmuls]
    if rates:
        yield f"matmuls, TFLOP/s: {', '.join(rates)}"


def kernels(call: str, found: dict) -> Iterable[str]:
    yield (
        f"-- {call}: {figure(found['milliseconds']['median'])} ms, "
        f"{figure(found['kernel_milliseconds'])} in {found['started']:.0f} kernels"
    )
    usual = call.split()[0] in ("stae", "reference")
    for kernel in found["kernels"][: SHOWN_KERNELS if usual else OTHERS_KERNELS]:
        yield f"{kernel['microseconds']:9.0f} us {kernel['count']:5.1f}x {short(kernel['name'])}"


def short(name: str) -> str:
    """A kernel's name without what all have."""
    plain = re.sub(
        r"^void |\(anonymous namespace\)::|<unnamed>::|at::native::|c10::|at::", "", name
    )
    return plain[:NAME]


def networks(result: dict) -> Iterable[str]:
    """A line for each stage of each case: ms, share of the fastest product, memory."""
    if result.get("unfused"):
        yield f"without fast kernels: {result['unfused']}"
    for one in result.get("results", ()):
        case = one["case"]
        label = f"{case['width']}x{case['height']} b{case['batch']}"
        for stage in ("encoder", "decoder"):
            timings = [timing for timing in one["timings"] if timing["stage"] == stage]
            yield f"{label} {stage[:3]} | " + " | ".join(map(timing_of, timings))
        for name, why in one.get("left_out", {}).items():
            yield f"{label}: {name} left out: {why[:LONG]}"
    for one in result.get("results", ())[:1]:
        yield from products(one.get("matmuls", ()))


def timing_of(timing: dict) -> str:
    memory, slower = timing["memory_bytes"], timing["slowdown"]["median"]
    return (
        f"{timing['network']} {figure(timing['milliseconds']['median'])} ms "
        f"{timing['share']['median']:.0%}"
        + ("" if timing["network"] == "stae" else f" {slower:.2f}x")
        + ("" if memory is None else f" {memory / 1e9:.2f} GB")
    )


def path(result: dict) -> Iterable[str]:
    for run in result.get("runs", ()):
        for one in run["paths"]:
            speeds = (f"{stage} {figure(one['images'] / s)}" for stage, s in one["seconds"].items())
            yield (
                f"{one['command']}, {one['threads']} threads, {one['images']} images, images/s: "
                f"{', '.join(speeds)}; bound by {one['bound_by']}"
            )


def sharing(result: dict) -> Iterable[str]:
    for run in result.get("runs", ()):
        rates = (
            f"{kind} {figure(run[kind]['images_per_second'])} images/s of {run[kind]['images']}"
            for kind in ("large", "small")
            if run[kind]["images_per_second"]
        )
        start = f"start {run['start_seconds']:.1f} s"
        yield f"{run['processes']} processes, {result['cores']} cores: {', '.join(rates)}, {start}"


SECTIONS = {
    "numbers": numbers, "stages": stages, "networks": networks, "path": path, "sharing": sharing,
}  # fmt: skip


def spread(one: dict) -> str:
    return f"{figure(one['median'])} ({figure(one['p10'])}-{figure(one['p90'])})"


def figure(value: float) -> str:
    """Three significant digits, all of those before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"

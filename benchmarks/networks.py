"""Times the network beside others, as `stae bench` does, and records every case as it ends.

Others that cannot be loaded or do not run are left out, and the record says why.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.record import ROOT, environment, first_line, options, record
from stae_cli import StupidAE
from stae_cli.benchmark.contenders import VARIANTS, check_installed, seeded_model
from stae_cli.benchmark.engines import ON_CPU
from stae_cli.benchmark.report import Case, Report
from stae_cli.benchmark.run import run
from stae_cli.errors import StaeError

ONLY_ON = {"cuda": tuple(VARIANTS), "cpu": ON_CPU}
AVX2 = {  # has torch, oneDNN (also the one in OpenVINO) and MKL leave out what AVX2 lacks
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
# Of engines that read none of these: they ask the CPU itself.
BEYOND = {
    "onnxruntime": "used AVX-512, from which it cannot be kept",
    "openvino": "used AVX-512 in its fully connected layers, from which they cannot be kept",
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = options("networks", __doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", default="256,512,1024", help="of square pictures, in pixels")
    parser.add_argument("--batches", default="1")
    parser.add_argument("--cases", help="SIDE:BATCH,... instead of all sizes in all batches")
    parser.add_argument("--against", help="by default all that there are")
    parser.add_argument("--weights", help="a checkpoint; by default seeded ones")
    parser.add_argument("--seconds", default=20.0, type=float, help="for the rounds of each case")
    parser.add_argument("--avx2", action="store_true", help="as if the CPU had no AVX-512")
    given = parser.parse_args(argv)
    if given.avx2 and not is_limited():
        sys.exit(run_limited(sys.argv[1:] if argv is None else argv))
    sys.exit(1 if measured(given) else 0)


def is_limited() -> bool:
    return all(os.environ.get(name) == value for name, value in AVX2.items())


def run_limited(argv: Sequence[str]) -> int:
    """The same in a new process, since libraries read their variables once; its exit code."""
    command = [sys.executable, "-m", "benchmarks.networks", *argv]
    with TemporaryDirectory() as folder:
        # What `torch.compile` finds in its usual one, made with AVX-512, gives wrong numbers.
        limits = AVX2 | {"TORCHINDUCTOR_CACHE_DIR": folder}
        ran = subprocess.run(command, env=environment() | limits, cwd=ROOT, check=False)
    return ran.returncode


def beyond_limits(names: Sequence[str]) -> dict[str, str]:
    """What ran faster than on a CPU without AVX-512; nothing where the CPU is one."""
    cpuinfo = Path("/proc/cpuinfo")
    has_more = cpuinfo.exists() and "avx512f" in cpuinfo.read_text()
    if not (is_limited() and has_more):
        return {}
    return {name: why for name, why in BEYOND.items() if name in names}


def cases_of(given: argparse.Namespace) -> list[Case]:
    if given.cases:
        pairs = [map(int, pair.split(":")) for pair in given.cases.split(",")]
    else:
        sizes, batches = given.sizes.split(","), given.batches.split(",")
        pairs = [(int(size), int(batch)) for size in sizes for batch in batches]
    return [Case(side, side, batch) for side, batch in pairs]


def measured(given: argparse.Namespace) -> dict[str, str]:
    """Records the report so far after each case; returns which cases failed, and why."""
    kind = given.device.partition(":")[0]
    all_others = ["reference", "compile", *ONLY_ON.get(kind, ()), "taesd", "sdxl"]
    against = given.against.split(",") if given.against else all_others
    missing = missing_peers(against)
    present = [name for name in against if name not in missing]
    model = StupidAE.from_checkpoint(given.weights) if given.weights else seeded_model()
    how = {"weights": given.weights or "seeded", "against": present, "device": given.device}
    so_far: Report | None = None
    failures: dict[str, str] = {}
    for case in cases_of(given):
        print(f"timing {case}", file=sys.stderr, flush=True)
        try:
            so_far = joined(so_far, run(model, [case], seconds=given.seconds, **how), missing)
        except Exception as error:  # noqa: BLE001  # whatever a driver raises, the next may work
            failures[str(case)] = first_line(error)
            print(f"{case}: {first_line(error)}", file=sys.stderr, flush=True)
        report = so_far.as_json() if so_far else {"dtype": None, "results": []}
        report |= {"beyond_limits": beyond_limits(present), "failures": failures}
        name = "avx2" if kind == "cpu" and is_limited() else kind
        record(given, f"networks-{name}", report, given.device)
    return failures


def missing_peers(names: Sequence[str]) -> dict[str, str]:
    """Those that cannot be loaded, and why."""
    missing = {}
    for name in names:
        try:
            check_installed([name])
        except StaeError as error:
            missing[name] = error.message
            print(f"{name} is left out: {error.message}", file=sys.stderr, flush=True)
    return missing


def joined(so_far: Report | None, report: Report, missing: dict[str, str]) -> Report:
    earlier = so_far.results if so_far else ()
    found = [replace(one, left_out={**one.left_out, **missing}) for one in report.results]
    return replace(report, results=(*earlier, *found))


if __name__ == "__main__":
    main()

"""Times the network beside others, as `stae bench` does, and records every case as it ends.

PYTHONPATH=. python benchmarks/networks.py [--device cuda] [--sizes 256,512,1024]
    [--against reference]

Others that cannot be loaded or do not run are left out, and the record says why.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from time import monotonic

import torch
from record import Recorder, add_options, first_line, record, recorder

from stae_cli import StupidAE
from stae_cli.benchmark.contenders import VARIANTS, check_installed, seeded_model
from stae_cli.benchmark.machine import describe_machine
from stae_cli.benchmark.report import Case, Report
from stae_cli.benchmark.run import run
from stae_cli.errors import StaeError

AGAINST = ("reference", "taesd", "sdxl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", default="256,512,1024")
    parser.add_argument("--batches", default="1")
    parser.add_argument("--cases", help="SIDE:BATCH,... instead of all sizes in all batches")
    parser.add_argument("--against", help="by default all that there are")
    parser.add_argument("--weights", help="a checkpoint; by default seeded ones")
    parser.add_argument("--seconds", default=20.0, type=float, help="at most, for each case")
    parser.add_argument("--within", default=1e9, type=float, help="seconds for all cases")
    add_options(parser)
    given = parser.parse_args()
    end = monotonic() + given.within
    on_cuda = given.device.startswith("cuda")
    against = given.against.split(",") if given.against else [*VARIANTS] * on_cuda + [*AGAINST]
    result = measure(
        cases_of(given),
        given.device,
        against,
        # Setting up and warming up take as long as the rounds.
        lambda left: min(given.seconds, (end - monotonic()) / left / 2),
        weights=given.weights,
        record=recorder(given),
    )
    sys.exit(1 if result["failures"] else 0)


def cases_of(given: argparse.Namespace) -> list[Case]:
    if given.cases:
        pairs = [map(int, pair.split(":")) for pair in given.cases.split(",")]
    else:
        sizes, batches = given.sizes.split(","), given.batches.split(",")
        pairs = [(int(size), int(batch)) for size in sizes for batch in batches]
    return [Case(side, side, batch) for side, batch in pairs]


def measure(
    cases: Sequence[Case],
    device: str,
    against: Sequence[str],
    seconds: Callable[[int], float],
    *,
    weights: str | None = None,
    record: Recorder = record,
) -> dict:
    """Records the report so far after each case, what failed, and what there was no time for.

    `seconds` says how long a case may take when so many are left; 0 or less ends it.
    """
    model = StupidAE.from_checkpoint(weights) if weights else seeded_model()
    missing = missing_peers(against)
    present = [name for name in against if name not in missing]
    so_far: Report | None = None
    failures: dict[str, str] = {}
    unstarted: list[str] = []
    result: dict = {}
    for index, case in enumerate(cases):
        allowed = seconds(len(cases) - index)
        if allowed <= 0:
            unstarted = [str(each) for each in cases[index:]]
        else:
            print(f"timing {case}", file=sys.stderr, flush=True)
            try:
                so_far = joined(so_far, run(
                    model, [case], weights=weights or "seeded", against=present,
                    device=device, seconds=allowed,
                ), missing)  # fmt: skip
            except Exception as error:  # noqa: BLE001  # whatever a driver raises, the next may do
                failures[str(case)] = first_line(error)
                print(f"{case}: {first_line(error)}", file=sys.stderr, flush=True)
        figures = so_far.as_json() if so_far else unmeasured(device)
        result = {**figures, "failures": failures, "unstarted": unstarted}
        record(f"networks-{device.partition(':')[0]}", result)
        if allowed <= 0:
            break
    return result


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


def unmeasured(device: str) -> dict:
    """What a report without results says."""
    machine = asdict(describe_machine(torch.device(device)))
    return {"machine": machine, "dtype": None, "unfused": None, "results": []}


if __name__ == "__main__":
    main()

"""Times the network beside others, as `stae bench` does, and records every case as it ends.

python benchmarks/networks.py [--device cuda] [--sizes 256,512,1024] [--against reference]
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from stae_cli.benchmark.contenders import seeded_model
from stae_cli.benchmark.report import Case, Report
from stae_cli.benchmark.run import run
from stae_cli.errors import StaeError

RESULTS = Path(__file__).parent / "results"
AGAINST = ("reference", "taesd", "sdxl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", default="256,512,1024")
    parser.add_argument("--batches", default="1")
    parser.add_argument("--against", default=",".join(AGAINST))
    parser.add_argument("--seconds", default=20.0, type=float)
    given = parser.parse_args()
    sizes = [int(size) for size in given.sizes.split(",")]
    batches = [int(batch) for batch in given.batches.split(",")]
    cases = [Case(size, size, batch) for size in sizes for batch in batches]
    measure(cases, given.device, given.against.split(","), lambda _left: given.seconds)


def measure(
    cases: list[Case], device: str, against: list[str], seconds: Callable[[int], float]
) -> Report | None:
    """Records the report so far after each case.

    `seconds` says how long a case may take when so many are left; 0 or less ends it.
    """
    name = f"networks-{device.partition(':')[0]}"
    so_far: Report | None = None
    for index, case in enumerate(cases):
        allowed = seconds(len(cases) - index)
        if allowed <= 0:
            print(f"no time is left for {', '.join(map(str, cases[index:]))}", file=sys.stderr)
            break
        print(f"timing {case}", file=sys.stderr, flush=True)
        try:
            report = run(seeded_model(), [case], weights="seeded", against=against,
                         device=device, seconds=allowed)  # fmt: skip
        except StaeError as error:  # the next one may fit
            print(f"{case}: {error.message}", file=sys.stderr)
            continue
        earlier = so_far.results if so_far else ()
        so_far = replace(report, results=(*earlier, *report.results))
        record(name, so_far.as_json())
    return so_far


def record(name: str, result: dict) -> None:
    """Writes a result with the commit it belongs to."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=False, cwd=RESULTS,
    ).stdout.strip()  # fmt: skip
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"commit": commit, **result}, indent=1) + "\n")
    print(f"recorded in {path}")


if __name__ == "__main__":
    main()

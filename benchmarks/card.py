"""Measures what only a card can show: agreement, networks and path, each in a process of its own.

Every script records its results as it goes, so that nothing is lost when one fails or is ended. At
the end the tables of all that was recorded are printed.
"""

import os
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.record import environment, options
from benchmarks.report import tables

# The most telling cases come first.
CASES = "1024:8,256:1,1024:1,2048:1,512:8,512:1,256:8,2048:8"
WORKERS = (16, 4, 1)


def phases() -> dict[str, list[str]]:
    """The scripts and their options."""
    workers = ",".join(str(number) for number in WORKERS if number <= (os.cpu_count() or 1))
    return {
        "agreement": ["--seconds", "20"],
        "networks": ["--cases", CASES, "--seconds", "10"],
        "path": ["--workers", workers],
    }


QUICK = {
    "agreement": ["--photo-side", "32", "--side", "32", "--seconds", "0"],
    "networks": ["--cases", "16:1", "--against", "unfused,reference", "--seconds", "0"],
    "path": ["--workers", "1", "--copies", "2", "--side", "32"],
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = options("card", __doc__)
    parser.add_argument("--device", default="cuda", help="another one only to try this script")
    parser.add_argument("--weights", default="builtin")
    parser.add_argument("--phases", default=",".join(QUICK), help="some of these")
    parser.add_argument("--minutes", default=5.0, type=float, help="for each of them, at most")
    parser.add_argument("--quick", action="store_true", help="little of each: try this script")
    given = parser.parse_args(argv)
    common = ["--device", given.device, "--weights", given.weights, "--results", given.results]
    common += ["--commit", given.commit] if given.commit else []
    failed = []
    for name in given.phases.split(","):
        chosen = QUICK if given.quick else phases()
        if name not in chosen:
            parser.error(f"no phase {name!r}: there are {', '.join(chosen)}")
        command = [sys.executable, "-m", f"benchmarks.{name}", *chosen[name], *map(str, common)]
        try:
            ran = subprocess.run(
                command, env=environment(), timeout=60 * given.minutes, check=False
            )
            failed += [f"{name} ended with {ran.returncode}"] * (ran.returncode != 0)
        except subprocess.TimeoutExpired:
            failed.append(f"{name} was ended after {given.minutes:g} minutes")
    print("\n".join(tables(given.results, given.device.partition(":")[0])))
    sys.exit("\n".join(failed) or None)


if __name__ == "__main__":
    main()

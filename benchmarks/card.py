"""Everything that only an NVIDIA card can show, in under nine minutes; recorded step by step.

python benchmarks/card.py [--minutes 8.5] [--phases numbers,stages,networks,path,sharing]

numbers   every form of the network beside float32 on the CPU, alone and in company
stages    what the device can do, the kernels that the time goes into, chunks, inputs, latency
networks  the network beside the plain module and other autoencoders, by size and batch
path      from JPEG files to latents and back to PNGs, by reading threads
sharing   several processes on one card

Each phase is a process of its own, so that what a driver does to one does not touch the next; it
is ended when its time is over. Nothing needs to be installed but what stae needs, not even stae. At
the end a table of all that was measured is printed, and written beside the records.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import IO

from command import environment
from record import add_options, recorder
from table import table

HERE = Path(__file__).parent
# Those that bars are set for come first.
CASES = "1024:8,256:1,1024:1,2048:1,512:8,512:1,256:8,2048:8"
WORKERS = (16, 4, 1)
LAST = 5.0  # seconds for the table
ENDING = 4.0  # seconds that a phase has to end by itself
LEAST = 8.0  # seconds in which a phase may do anything


@dataclass(frozen=True)
class Phase:
    """A script, the seconds that are kept for it while others run, and what it is told."""

    script: str
    seconds: float
    options: Sequence[str]
    quick: Sequence[str]  # options with which it takes no time, on a CPU too


def phases(device: str) -> dict[str, Phase]:
    cores = os.cpu_count() or 1
    workers = ",".join(str(n) for n in WORKERS if n <= cores)
    small = ("--side", "64")
    return {
        "numbers": Phase("agreement.py", 60, (), small),
        "stages": Phase("stages.py", 120, (), (*small, "--batch", "2", "--seconds", "0")),
        "networks": Phase(
            "networks.py", 40, ("--cases", CASES),
            ("--cases", "64:1", "--against", "unfused,reference,taesd", "--seconds", "0.1"),
        ),
        "path": Phase(
            "path.py", 150, ("--workers", workers),
            ("--workers", "1", "--copies", "4", *small),
        ),
        "sharing": Phase("sharing.py", 100, (), ("--processes", "1,2", "--share", "100")),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", default=8.5, type=float, help="for all phases together")
    parser.add_argument("--phases", help="some of them, with commas; by default all")
    parser.add_argument("--device", default="cuda", help="another one only to try this script")
    parser.add_argument("--weights", default="builtin", help="a checkpoint")
    parser.add_argument("--quick", action="store_true", help="little of all: try this script")
    add_options(parser)
    given = parser.parse_args()
    end = monotonic() + 60 * given.minutes - LAST
    known = phases(given.device)
    chosen = given.phases.split(",") if given.phases else [*known]
    for name in chosen:
        if name not in known:
            parser.error(f"no phase {name!r}: there are {', '.join(known)}")
    given.out.mkdir(parents=True, exist_ok=True)
    failed = [name for name in chosen if not done(name, chosen, known, given, end)]
    text = table(given.out, given.device.partition(":")[0], chosen)
    (given.out / "card.txt").write_text(text)
    print(text, flush=True)
    sys.exit(1 if failed else 0)


def done(
    name: str,
    chosen: Sequence[str],
    known: dict[str, Phase],
    given: argparse.Namespace,
    end: float,
) -> bool:
    """Runs a phase and records why it failed, if it did."""
    kept = sum(known[later].seconds for later in chosen[chosen.index(name) + 1 :])
    allowed = end - kept - monotonic()
    start = monotonic()
    reason = run(known[name], given, allowed) if allowed > LEAST else "no time was left"
    print(f"{name}: {monotonic() - start:.0f} s{f', {reason}' if reason else ''}", flush=True)
    if reason:
        note_failure(given, f"{name}-{given.device.partition(':')[0]}", reason)
    return reason is None


def run(phase: Phase, given: argparse.Namespace, allowed: float) -> str | None:
    """Why it failed; None where it did not."""
    command = [
        sys.executable, HERE / phase.script, *phase.options, *(phase.quick if given.quick else ()),
        "--device", given.device, "--weights", given.weights, "--out", given.out.resolve(),
        "--within", allowed - ENDING, *(("--commit", given.commit) if given.commit else ()),
    ]  # fmt: skip
    child = subprocess.Popen(
        [str(word) for word in command], stderr=subprocess.PIPE, text=True, errors="replace",
        env=environment() | {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"},
        process_group=0 if os.name == "posix" else None,
    )  # fmt: skip
    said: deque[str] = deque(maxlen=20)
    assert child.stderr is not None
    listener = Thread(target=repeat, args=(child.stderr, said), daemon=True)
    listener.start()
    try:
        code = child.wait(allowed)
    except subprocess.TimeoutExpired:
        return f"it was ended after {allowed:.0f} s"
    finally:
        end_group(child)
        listener.join(ENDING)
        if not listener.is_alive():
            child.stderr.close()
    return None if code == 0 else f"it ended with {code}: {last_words(said)}"


def repeat(lines: IO[str], said: deque[str]) -> None:
    """Shows what a phase says, and remembers the end of it."""
    for line in lines:
        print(line, end="", file=sys.stderr, flush=True)
        said.append(line.strip())


def last_words(said: deque[str]) -> str:
    return next((line for line in reversed(said) if line), "it said nothing")


def end_group(child: subprocess.Popen) -> None:
    """Ends what is left of a phase and of the processes that it started."""
    if os.name == "posix":
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    elif child.poll() is None:
        child.kill()
    child.wait()


def note_failure(given: argparse.Namespace, name: str, reason: str) -> None:
    """Adds to what the phase itself has recorded."""
    path = given.out / f"{name}.json"
    with suppress(OSError, ValueError):
        result = json.loads(path.read_text()) if path.exists() else {}
        failures = {"the phase": reason, **result.pop("failures", {})}
        result.pop("commit", None)
        recorder(given)(name, {**result, "failures": failures})


if __name__ == "__main__":
    main()

"""What the network's time on a device goes into: ceilings, kernels, chunks, inputs, latency.

PYTHONPATH=. python benchmarks/stages.py [--device cuda] [--side 1024] [--batch 8]

Each part is recorded as it ends; one that fails does not stop the others.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import count
from time import monotonic, perf_counter

import torch
from ceilings import ceilings
from kernelcosts import costliest
from record import add_options, first_line, recorder
from software import facts
from subject import Function, Subject, calls_of
from tiles import tiles
from torch import Tensor

from stae_cli import Codec, StupidAE
from stae_cli.benchmark.contenders import contender
from stae_cli.benchmark.machine import describe_machine
from stae_cli.benchmark.report import OURS, Case, Spread
from stae_cli.codec import inference

CHUNKS = {"cuda": (4096, 8192, 16384, 32768)}
FEW_CHUNKS = (128, 512)  # elsewhere
ALONE = 256  # pixels on a side, for latency
ALONE_CALLS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--weights", default="builtin")
    parser.add_argument("--side", default=1024, type=int)
    parser.add_argument("--batch", default=8, type=int)
    parser.add_argument("--seconds", default=5.0, type=float, help="for the rounds of a part")
    parser.add_argument("--within", default=1e6, type=float, help="no part begins after so long")
    add_options(parser)
    given = parser.parse_args()
    end = monotonic() + given.within
    device = torch.device(given.device)
    model = StupidAE.from_checkpoint(given.weights)
    case = Case(given.side, given.side, given.batch)
    dtype = Codec(model, device=device).dtype
    subject = Subject(model, device, dtype, case, given.seconds)
    result = {
        "machine": asdict(describe_machine(device)), "case": asdict(case),
        "dtype": str(dtype)[6:], "failures": subject.failures, "unstarted": [],
    }  # fmt: skip
    for part, measure in PARTS.items():
        if monotonic() > end:
            result["unstarted"].append(part)
        else:
            print(f"measuring {part}", file=sys.stderr, flush=True)
            result |= measured(part, measure, subject)
        recorder(given)(f"stages-{device.type}", result)
    sys.exit(1 if subject.failures else 0)


def measured(part: str, measure: Callable[[Subject], dict], subject: Subject) -> dict:
    even_terms = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    try:
        with torch.no_grad(), even_terms:
            return {part: measure(subject)}
    except Exception as error:  # noqa: BLE001  # whatever a driver raises, other parts may do
        subject.failures[part] = first_line(error)
        print(f"{part}: {first_line(error)}", file=sys.stderr, flush=True)
        return {}
    finally:
        if subject.device.type == "cuda":
            torch.cuda.empty_cache()


def software(subject: Subject) -> dict:
    return facts(subject.model, subject.device, subject.dtype)


def kernels(subject: Subject) -> dict:
    """Of every form and the plain module: a call's time, and the kernels that it goes into."""

    def measure(function: Function, given: Sequence[Tensor]) -> dict:
        spread = subject.timed({"a call": (function, given)}, seconds=0.5)["a call"]
        turn = count()
        found = costliest(subject.device, lambda: function(given[next(turn) % len(given)]))
        return {"milliseconds": asdict(spread), **found}

    return subject.of_each_call("kernels", measure)


def chunks(subject: Subject) -> dict:
    """Rows that go through the layers at once: milliseconds of codecs made for each number."""
    kind, inputs = subject.device.type, subject.inputs()
    before, tasks = inference.ROWS[kind], {}
    try:
        for rows in CHUNKS.get(kind, FEW_CHUNKS):
            inference.ROWS[kind] = rows
            calls = calls_of(contender(OURS, subject.codec(), subject.model), inputs)
            tasks |= {f"{rows} {stage}": call for stage, call in calls.items()}
    finally:
        inference.ROWS[kind] = before
    return {name: asdict(spread) for name, spread in subject.timed(tasks).items()}


def pictures(subject: Subject) -> dict:
    """Milliseconds of encoding bytes and of encoding floats."""
    codec, inputs = subject.codec(), subject.inputs()
    tasks = {
        "uint8": (codec.encode, inputs.pixels()),
        str(subject.dtype)[6:]: (codec.encode, inputs.images()),
    }
    return {name: asdict(spread) for name, spread in subject.timed(tasks).items()}


def latency(subject: Subject) -> dict:
    """Microseconds of single small pictures: as the host sees them, and back to back."""
    side = min(ALONE, subject.case.width)
    small = replace(subject, case=Case(side, side))

    def measure(function: Function, given: Sequence[Tensor]) -> dict:
        back_to_back = small.timed({"a call": (function, given)}, seconds=0)["a call"]
        return {
            "side": side,
            "host_microseconds": asdict(waited_for(small, function, given)),
            "back_to_back_microseconds": 1000 * back_to_back.median,
        }

    return small.of_each_call("latency", measure)


def waited_for(subject: Subject, function: Function, given: Sequence[Tensor]) -> Spread:
    """Microseconds of a call and of waiting for it."""
    times: list[float] = []
    end = monotonic() + subject.seconds / 4
    while len(times) < ALONE_CALLS and (monotonic() < end or len(times) < 3):
        start = perf_counter()
        function(given[len(times) % len(given)])
        if subject.device.type == "cuda":
            torch.cuda.synchronize(subject.device)
        times.append(1e6 * (perf_counter() - start))
    return Spread.of(times)


PARTS = {
    "software": software, "ceilings": ceilings, "kernels": kernels, "tiles": tiles,
    "chunks": chunks, "pictures": pictures, "latency": latency,
}  # fmt: skip


if __name__ == "__main__":
    main()

"""bfloat16 beside float32 on a CPU: times in the same rounds, and how far its latents are off.

PYTHONPATH=. python benchmarks/halves.py
"""

import json
import statistics

import numpy as np
import torch
from agreement import cropped
from path import PHOTOS
from record import record

from stae_cli import Codec, StupidAE
from stae_cli.benchmark.contenders import seeded_model
from stae_cli.benchmark.inputs import Inputs
from stae_cli.benchmark.machine import describe_machine
from stae_cli.benchmark.report import Case
from stae_cli.benchmark.rounds import rounds_of
from stae_cli.benchmark.stopwatch import Stopwatch

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16)
SECONDS = 40


def main() -> None:
    found = {"cpu": describe_machine(CPU).cpu, "time": times(Case(1024, 1024)), "error": error()}
    record("halves-cpu", found)
    print(json.dumps(found, indent=1))


def times(case: Case) -> dict[str, float]:
    """bfloat16's time over float32's, the median of the rounds' ratios."""
    tasks = {}
    for dtype in DTYPES:
        codec = Codec(seeded_model(), device=CPU, dtype=dtype)
        inputs = Inputs(case, device=CPU, dtype=dtype)
        for stage, function, given in (
            ("encode", codec.encode, inputs.pixels()),
            ("decode", codec.decode, inputs.latents(16, 8)),
        ):
            watch = Stopwatch(CPU, function, given)
            calls = watch.warm_up().calls
            tasks[stage, dtype] = lambda watch=watch, calls=calls: watch.sample(calls)
    rounds = rounds_of(tasks, SECONDS)
    one, other = DTYPES
    return {
        stage: round(statistics.median(each[stage, other] / each[stage, one] for each in rounds), 3)
        for stage in ("encode", "decode")
    }


def error() -> float:
    """Root mean square of the photos' latents' errors over the latents' standard deviation."""
    model = StupidAE.from_checkpoint("builtin")
    photos = [torch.from_numpy(cropped(photo, 100_000)) for photo in PHOTOS]
    exact, half = (
        np.concatenate([latent.float().numpy().ravel() for latent in codec.encode(photos)])
        for codec in (Codec(model, device=CPU, dtype=dtype) for dtype in DTYPES)
    )
    return round(float(np.sqrt(np.mean((half - exact) ** 2)) / exact.std()), 5)


if __name__ == "__main__":
    main()

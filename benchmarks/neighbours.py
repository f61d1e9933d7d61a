"""Times the network beside busy programs: the codec, and the plain module, on the same cores.

Each network runs in a process of its own while so many neighbours keep a core busy each. The fair
share is what the scheduler would grant: with T threads and N neighbours on C cores, T / (T + N) of
them, once there are more threads than cores.
"""

import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from random import Random

import torch

from benchmarks.record import environment, options, record
from stae_cli.benchmark.report import Spread
from stae_cli.cores import usable_cores

NEIGHBOURS = (0, 1, 2, 4)
NETWORKS = ("stae", "reference")
STAGES = ("encode", "decode")
BUSY = "while True: pass"
TIMED = """
import os, sys
from time import perf_counter
if sys.argv[1] == "stae":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `stae encode` does
import torch
from stae_cli import Codec
from stae_cli.benchmark.contenders import seeded_model
torch.set_grad_enabled(False)
model, side, seconds = seeded_model(), int(sys.argv[2]), float(sys.argv[3])
network = Codec(model, device="cpu") if sys.argv[1] == "stae" else model
image, latents = torch.zeros(1, 3, side, side), torch.randn(1, 16, side // 8, side // 8)
for stage, tensor in (("encode", image), ("decode", latents)):
    run = getattr(network, stage)
    run(tensor)
    calls, start = 0, perf_counter()
    while perf_counter() - start < seconds:
        run(tensor)
        calls += 1
    print((perf_counter() - start) / calls)
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = options("neighbours", __doc__)
    parser.add_argument("--side", default=512, type=int, help="of the picture, in pixels")
    parser.add_argument("--seconds", default=2.0, type=float, help="for each stage in each round")
    parser.add_argument("--rounds", default=3, type=int)
    parser.add_argument("--neighbours", default=NEIGHBOURS, nargs="+", type=int, help="0 first")
    given = parser.parse_args(argv)
    cases = [(network, count) for network in NETWORKS for count in given.neighbours]
    times = {case: [] for case in cases}
    order = Random(1)  # an order, not a secret
    for _ in range(given.rounds):
        order.shuffle(cases)
        for case in cases:
            times[case].append(timed(*case, side=given.side, seconds=given.seconds))
    cores, threads = usable_cores(), torch.get_num_threads()
    found = []
    for network, count in times:
        fair = max(1.0, (threads + count) / cores)
        for index, stage in enumerate(STAGES):
            alone = [each[index] for each in times[network, 0]]
            beside = [each[index] for each in times[network, count]]
            ratios = [late / quiet for late, quiet in zip(beside, alone, strict=True)]
            found.append(
                {
                    "network": network,
                    "stage": stage,
                    "neighbours": count,
                    "milliseconds": asdict(Spread.of([1000 * each for each in beside])),
                    "over alone": asdict(Spread.of(ratios)),
                    "fair": fair,
                }
            )
            median = found[-1]["over alone"]["median"]
            print(f"{network} {stage} beside {count}: {median:.2f} of {fair:.2f}", flush=True)
    record(given, "neighbours-cpu", {"cores": cores, "side": given.side, "found": found})


def timed(network: str, neighbours: int, *, side: int, seconds: float) -> list[float]:
    """Seconds per call of each stage, beside so many busy processes."""
    with ExitStack() as running:
        for _ in range(neighbours):
            busy = subprocess.Popen([sys.executable, "-c", BUSY])
            running.callback(busy.wait)
            running.callback(busy.kill)
        command = [sys.executable, "-c", TIMED, network, str(side), str(seconds)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    return [float(line) for line in ran.stdout.split()]


if __name__ == "__main__":
    main()

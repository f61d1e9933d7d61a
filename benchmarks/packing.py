"""Times the tutorial's training step on mixed sizes beside one on equal sizes, in pairs.

Both have the same number of pictures and of tokens. Mixed once in their aspect ratios alone, and
once in their areas too, from a quarter of the mean to twice as much; the latter costs more where
attention does, which grows with the square of a picture's tokens.

python benchmarks/packing.py [--device cuda] [--width 768 --depth 12 --tokens 16384]
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "text_to_image"))

from record import record
from train import loss_of
from transformer import Size, Transformer

from stae_cli import PackedLatents
from stae_cli.codec.device import pick_device

# Grids of eight pictures with 2048 tokens together.
EQUAL = (16, 16)
STRIPS = ((12, 21), (21, 12), (8, 32), (32, 8), (10, 26), (26, 10), (4, 64))
AREAS = ((8, 8), (20, 24), (24, 20), (8, 16), (16, 8), (16, 24), (8, 16))
GRIDS = {
    "equal": (EQUAL,) * 8,
    "mixed aspect ratios": (EQUAL, *STRIPS),
    "mixed areas too": (EQUAL, *AREAS),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="auto")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=2048, help="about, in a batch")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    device = pick_device(options.device)
    batches = {name: batch(grids, options.tokens, device) for name, grids in GRIDS.items()}
    step = Step(options.width, options.depth, device)
    for given in batches.values():
        step(given)
    rounds = [{name: step(given) for name, given in batches.items()} for _ in range(options.rounds)]
    found = {}
    for name, given in batches.items():
        ratios = sorted(times[name] / times["equal"] for times in rounds)
        found[name] = {
            "tokens": len(given.tokens),
            "pictures": len(given.sizes),
            "milliseconds": 1000 * median(times[name] for times in rounds),
            "against equal": median(ratios),
            "quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
        }
        print(name, found[name])
    sizes = {"device": str(device), "width": options.width, "depth": options.depth}
    record(f"packing-{device.type}", sizes | {"batches": found})


def batch(grids, tokens: int, device: torch.device) -> PackedLatents:
    """Whole repetitions of the grids."""
    each = sum(height * width for height, width in grids)
    sizes = tuple(grids) * max(1, tokens // each)
    count = sum(height * width for height, width in sizes)
    generator = torch.Generator(device).manual_seed(0)
    return PackedLatents(torch.randn(count, 64, device=device, generator=generator), sizes)


class Step:
    """Seconds of one forward and backward pass and the optimizer's step."""

    def __init__(self, width: int, depth: int, device: torch.device) -> None:
        self.device = device
        self.network = Transformer(Size(64, width, depth)).to(device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 1e-4)

    def __call__(self, packed: PackedLatents) -> float:
        self._wait()
        started = time.perf_counter()
        loss = loss_of(self.network, packed, ["a caption"] * len(packed.sizes), (0.0, 1.0))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


if __name__ == "__main__":
    main()

"""Everything that only an NVIDIA card can show, in under nine minutes; recorded step by step.

python benchmarks/card.py [--minutes 8.5]

First whether the numbers are right: every form of the network beside float32 on the CPU, and
whether a picture's latent has the same bytes alone and in company. Then the network beside the
plain module and other autoencoders, by size and batch, until the time is over. Last the path from
JPEG files to latents and back to PNGs, by reading threads.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from time import monotonic

import numpy as np
import path
import torch
from networks import AGAINST, measure, record
from path import PHOTOS
from PIL import Image

from stae_cli import Codec, StupidAE
from stae_cli.benchmark.machine import describe_machine
from stae_cli.benchmark.report import Case

# Those that bars are set for come first.
CASES = [(1024, 8), (256, 1), (1024, 1), (2048, 1), (512, 8), (512, 1), (256, 8), (2048, 8)]
PATH_SECONDS = 90  # kept for the path
WORKERS = (1, 4, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", default=8.5, type=float)
    parser.add_argument("--device", default="cuda", help="another one only to try this script")
    parser.add_argument("--cases", default=len(CASES), type=int)
    parser.add_argument("--copies", default=path.COPIES, type=int)
    given = parser.parse_args()
    end = monotonic() + 60 * given.minutes
    device = torch.device(given.device)
    machine = asdict(describe_machine(device))
    record(f"numbers-{device.type}", {"machine": machine, "numbers": numbers(device)})
    measure(
        [Case(side, side, batch) for side, batch in CASES[: given.cases]],
        given.device,
        ["unfused", *(AGAINST if device.type == "cuda" else ["reference"])],
        # Setting up and warming up take as long as the rounds.
        lambda left: min(20.0, (end - PATH_SECONDS - monotonic()) / left / 2),
    )
    path.measure(given.device, [n for n in WORKERS if n <= (os.cpu_count() or 1)], given.copies)


def numbers(device: torch.device) -> dict:
    """How far each form is from float32 on the CPU, and whether company changes bytes."""
    whole = [np.asarray(Image.open(photo).convert("RGB")) for photo in PHOTOS]
    photos = [torch.from_numpy(p[: len(p) // 8 * 8, : p.shape[1] // 8 * 8].copy()) for p in whole]
    model = StupidAE.from_checkpoint("builtin")
    exact = Codec(model, device="cpu")
    latents = exact.encode(photos)
    pictures = exact.decode(latents)
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    sent = [photo.to(device) for photo in photos]
    found = {}
    for dtype in (torch.float32, half):
        for triton in (True, False):
            codec = Codec(model, device=device, dtype=dtype, triton=triton)
            together = codec.encode(sent)
            decoded = codec.decode([latent.to(dtype) for latent in latents])
            found[f"{str(dtype)[6:]}, {'fused' if triton else 'unfused'}"] = {
                "unfused because": codec.unfused,
                "latents": apart(together, latents),
                "pictures": apart(decoded, pictures),
                "same bytes alone": all(
                    torch.equal(codec.encode([photo])[0], latent)
                    for _ in range(3)  # from the second time on, recorded
                    for photo, latent in zip(sent, together, strict=True)
                ),
                "rows that are computed alone": codec._form._encoder._sizes,
            }
    return found


def apart(found: Sequence[torch.Tensor], meant: Sequence[torch.Tensor]) -> dict:
    pairs = zip(found, meant, strict=True)
    differences = torch.cat([(one.float().cpu() - two).abs().flatten() for one, two in pairs])
    return {"largest": differences.max().item(), "rms": differences.square().mean().sqrt().item()}


if __name__ == "__main__":
    main()

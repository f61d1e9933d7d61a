"""Whether the numbers are right: every form of the network beside float32 on the CPU.

PYTHONPATH=. python benchmarks/agreement.py [--device cuda]

Also whether a picture's latent has the same bytes alone and in company.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from path import PHOTOS
from PIL import Image
from record import add_options, first_line, recorder

from stae_cli import Codec, StupidAE
from stae_cli.benchmark.contenders import VARIANTS, CodecMaker
from stae_cli.benchmark.machine import describe_machine
from stae_cli.benchmark.report import OURS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--weights", default="builtin")
    parser.add_argument("--within", type=float, help="not looked at: it takes what it takes")
    parser.add_argument("--side", default=100_000, type=int, help="pixels, of photos at most")
    add_options(parser)
    given = parser.parse_args()
    device = torch.device(given.device)
    result = {"machine": asdict(describe_machine(device)), "numbers": {}, "failures": {}}
    for form, found in numbers(device, given.weights, given.side):
        kind = "failures" if isinstance(found, str) else "numbers"
        result[kind][form] = found
        recorder(given)(f"numbers-{device.type}", result)
    sys.exit(1 if result["failures"] else 0)


def ours(model: StupidAE, device: torch.device, dtype: torch.dtype) -> Codec:
    return Codec(model, device=device, dtype=dtype)


FORMS: Mapping[str, CodecMaker] = {OURS: ours, **VARIANTS}
HALF_ONLY = ("products",)


def numbers(device: torch.device, weights: str, side: int) -> Iterator[tuple[str, dict | str]]:
    """How far each form is from float32 on the CPU, or why that is not known."""
    photos = [torch.from_numpy(cropped(photo, side)) for photo in PHOTOS]
    model = StupidAE.from_checkpoint(weights)
    exact = Codec(model, device="cpu")
    latents = exact.encode(photos)
    pictures = exact.decode(latents)
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    for dtype in (half, torch.float32):
        for name, make in FORMS.items():
            if name in HALF_ONLY and dtype == torch.float32:
                continue
            form = f"{str(dtype)[6:]}, {name}"
            try:
                yield form, differences(make(model, device, dtype), photos, latents, pictures)
            except Exception as error:  # noqa: BLE001  # a driver, a compiler; others may do
                print(f"{form}: {first_line(error)}", file=sys.stderr, flush=True)
                yield form, first_line(error)


def cropped(photo: Path, side: int) -> np.ndarray:
    pixels = np.asarray(Image.open(photo).convert("RGB"))[:side, :side]
    return pixels[: len(pixels) // 8 * 8, : pixels.shape[1] // 8 * 8].copy()


def differences(
    codec: Codec,
    photos: Sequence[torch.Tensor],
    latents: Sequence[torch.Tensor],
    pictures: Sequence[torch.Tensor],
) -> dict:
    sent = [photo.to(codec.device) for photo in photos]
    together = codec.encode(sent)
    decoded = codec.decode([latent.to(codec.dtype) for latent in latents])
    return {
        "unfused because": codec.unfused,
        "latents": apart(together, latents),
        "pictures": apart(decoded, pictures),
        "same bytes alone": all(
            torch.equal(codec.encode([photo])[0], latent)
            for _ in range(3)  # from the second time on, recorded
            for photo, latent in zip(sent, together, strict=True)
        ),
        "rows that are computed alone": rows_of(codec),
    }


def rows_of(codec: Codec) -> list[int] | None:
    """How many rows the encoder computes at once; None where it does not say."""
    encoder = getattr(getattr(codec, "_form", None), "_encoder", None)
    sizes = getattr(encoder, "_sizes", None) or [getattr(encoder, "rows", None)]
    return [int(size) for size in sizes if size is not None] or None


def apart(found: Sequence[torch.Tensor], meant: Sequence[torch.Tensor]) -> dict:
    pairs = zip(found, meant, strict=True)
    differences = torch.cat([(one.float().cpu() - two).abs().flatten() for one, two in pairs])
    return {"largest": differences.max().item(), "rms": differences.square().mean().sqrt().item()}


if __name__ == "__main__":
    main()

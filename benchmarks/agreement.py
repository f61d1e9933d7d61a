"""Compares every form of the codec with float32 on the CPU: how far off its numbers are.

Also whether a picture's latent has the same bytes alone and in company, and how much time each form
takes beside float32 on the same device.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.record import PHOTOS, first_line, options, record
from stae_cli import Codec, StupidAE
from stae_cli.benchmark.contenders import VARIANTS, CodecMaker, Inputs
from stae_cli.benchmark.report import OURS, Case, Spread
from stae_cli.benchmark.stopwatch import Stopwatch, rounds_of


def main(argv: Sequence[str] | None = None) -> None:
    parser = options("agreement", __doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", default="builtin")
    parser.add_argument("--photo-side", default=100_000, type=int, help="pixels, at most")
    parser.add_argument("--side", default=1024, type=int, help="of the picture that is timed")
    parser.add_argument("--seconds", default=40.0, type=float, help="for the rounds")
    given = parser.parse_args(argv)
    device = torch.device(given.device)
    model = StupidAE.from_checkpoint(given.weights)
    photos = [torch.from_numpy(cropped(photo, given.photo_side)) for photo in PHOTOS]
    exact = Codec(model, device="cpu")
    latents = exact.encode(photos)
    pictures = exact.decode(latents)
    codecs: dict[str, Codec] = {}
    result = {"weights": given.weights, "side": given.side, "forms": {}, "failures": {}}
    for form, (make, dtype) in forms_of(device).items():
        try:
            codecs[form] = codec = make(model, device, dtype)
            result["forms"][form] = differences(codec, photos, latents, pictures)
        except Exception as error:  # noqa: BLE001  # a driver, a compiler; others may work
            codecs.pop(form, None)
            result["failures"][form] = first_line(error)
            print(f"{form}: {first_line(error)}", file=sys.stderr, flush=True)
    for form, ratios in times(codecs, Case(given.side, given.side), given.seconds).items():
        result["forms"][form] |= ratios
    record(given, f"agreement-{device.type}", result, given.device)
    sys.exit(1 if result["failures"] else 0)


def ours(model: StupidAE, device: torch.device, dtype: torch.dtype) -> Codec:
    return Codec(model, device=device, dtype=dtype)


def forms_of(device: torch.device) -> dict[str, tuple[CodecMaker, torch.dtype]]:
    """By name; the codec in float32, which times are compared with, comes first."""
    makers: Mapping[str, CodecMaker] = {OURS: ours}
    if device.type == "cuda":
        makers = {**makers, **VARIANTS}  # which differ from it there only
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    return {
        f"{str(dtype).removeprefix('torch.')}, {name}": (make, dtype)
        for dtype in (torch.float32, half)
        for name, make in makers.items()
    }


def cropped(photo: Path, side: int) -> np.ndarray:
    pixels = np.asarray(Image.open(photo).convert("RGB"))[:side, :side]
    return pixels[: len(pixels) // 8 * 8, : pixels.shape[1] // 8 * 8].copy()


def differences(
    codec: Codec, photos: Sequence[Tensor], latents: Sequence[Tensor], pictures: Sequence[Tensor]
) -> dict:
    sent = [photo.to(codec.device) for photo in photos]
    together = codec.encode(sent)
    decoded = codec.decode([latent.to(codec.device, codec.dtype) for latent in latents])
    return {
        "unfused because": codec.unfused,
        "latents": apart(together, latents),
        "pictures": apart(decoded, pictures),
        "same bytes alone": all(
            torch.equal(codec.encode([photo])[0], latent)
            for photo, latent in zip(sent, together, strict=True)
        ),
    }


def apart(found: Sequence[Tensor], meant: Sequence[Tensor]) -> dict[str, float]:
    """The largest difference, the root mean square, and that over the deviation of `meant`."""
    exact = torch.cat([each.flatten() for each in meant])
    errors = torch.cat([each.float().cpu().flatten() for each in found]) - exact
    rms = errors.square().mean().sqrt()
    return {
        "largest": errors.abs().max().item(),
        "rms": rms.item(),
        "relative": (rms / exact.std()).item(),
    }


def times(codecs: Mapping[str, Codec], case: Case, seconds: float) -> dict[str, dict]:
    """Milliseconds of each form, and its time over that of the first in the same rounds."""
    tasks = {}
    for form, codec in codecs.items():
        sizes = codec.architecture
        inputs = Inputs(case, device=codec.device, dtype=codec.dtype)
        calls = {
            "encode": (codec.encode, inputs.pixels()),
            "decode": (codec.decode, inputs.latents(sizes.channels, sizes.downsample)),
        }
        for stage, (function, given) in calls.items():
            watch = Stopwatch(codec.device, function, given)
            number = watch.warm_up().calls
            tasks[form, stage] = lambda watch=watch, number=number: watch.sample(number)
    rounds = rounds_of(tasks, seconds) if tasks else []
    found: dict[str, dict] = {form: {"milliseconds": {}, "time": {}} for form in codecs}
    for form, stage in tasks:
        mine = [each[form, stage] for each in rounds]
        base = [each[next(iter(codecs)), stage] for each in rounds]
        ratios = [one / other for one, other in zip(mine, base, strict=True)]
        found[form]["milliseconds"][stage] = asdict(Spread.of([1000 * time for time in mine]))
        found[form]["time"][stage] = asdict(Spread.of(ratios))
    return found


if __name__ == "__main__":
    main()

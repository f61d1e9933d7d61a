"""Draws pictures: python sample.py MODEL CAPTION... --size 192x128 --out FOLDER."""

import argparse
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformer import MERGE, Transformer, unmerged

from stae_cli import Codec, PackedLatents, StupidAE


def main(arguments: list[str] | None = None) -> None:
    """Draws every caption in every size, all in one batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="what train.py saved")
    parser.add_argument("captions", nargs="+")
    parser.add_argument("--size", type=size_of, action="append", required=True, metavar="WxH")
    parser.add_argument("--out", type=Path, default=Path("samples"))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=3.0, help="1 follows captions loosely")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    state = torch.load(options.model, weights_only=True, map_location="cpu")
    codec = Codec(StupidAE.from_checkpoint(state["codec"]), device=options.device)
    network = Transformer.restored(state).to(codec.device)
    torch.manual_seed(options.seed)
    wanted = [(caption, size) for caption in options.captions for size in options.size]
    token = codec.architecture.downsample * MERGE  # pixels on a side
    sizes = tuple((-(-height // token), -(-width // token)) for _, (width, height) in wanted)
    captions = [caption for caption, _ in wanted]
    tokens = sample(network, sizes, captions, options.steps, options.guidance)
    shift, scale = state["scaling"]
    images = codec.decode(unmerged(PackedLatents(tokens / scale + shift, sizes)))
    options.out.mkdir(parents=True, exist_ok=True)
    for number, ((_, (width, height)), image) in enumerate(zip(wanted, images, strict=True)):
        path = options.out / f"{number:03}.png"
        levels = image.float().add(1).mul(127.5).round().byte()[:, :height, :width]
        Image.fromarray(levels.permute(1, 2, 0).cpu().numpy()).save(path)
        print(path)


def size_of(text: str) -> tuple[int, int]:
    """`WxH` as two numbers."""
    width, height = map(int, text.split("x"))
    return width, height


@torch.no_grad()
def sample(
    network: Transformer,
    sizes: tuple[tuple[int, int], ...],
    captions: list[str],
    steps: int,
    guidance: float,
) -> Tensor:
    """Follows the velocity from noise to tokens (N, channels), in Euler's small steps.

    Guidance goes further the way in which the caption changes the velocity. Both velocities are
    computed in one batch, in which each picture occurs twice: with its caption and without.
    """
    device = next(network.parameters()).device
    count = sum(height * width for height, width in sizes)
    tokens = torch.randn(count, network.size.channels, device=device)
    times = torch.linspace(1, 0, steps + 1)
    for time, following in pairwise(times):
        twice = PackedLatents(torch.cat((tokens, tokens)), sizes * 2)
        at = time.expand(2 * len(sizes)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            velocity = network(twice, at, captions + [""] * len(sizes))
        told, untold = velocity.chunk(2)
        tokens += (following - time).item() * (untold + guidance * (told - untold))
    return tokens


if __name__ == "__main__":
    main()

"""Trains a text-to-image transformer: python train.py PHOTOS --out MODEL [--latents LATENTS]."""

import argparse
import time
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from pictures import Batches, find_latents, find_photos, read_cached, read_pixels
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from transformer import MERGE, Size, Transformer, merged

from stae_cli import Codec, PackedLatents
from stae_cli.checkpoints.checkpoint import load_checkpoint

WARM_UP = 100  # steps
DROPPED = 0.1  # share of captions left out, so that the network also learns what is likely at all


def main(arguments: list[str] | None = None) -> None:
    """Trains as the command line says."""
    options = parse(arguments)
    torch.manual_seed(options.seed)
    checkpoint = load_checkpoint(options.weights)
    model = checkpoint.model()
    codec = Codec(model, device=options.device)
    sizes = checkpoint.architecture
    token = sizes.downsample * MERGE  # pixels on a side
    if options.latents:
        examples = find_latents(options.latents)
        read = partial(read_cached, fingerprint=checkpoint.fingerprint)
    else:
        examples = find_photos(options.photos)
        read = partial(read_pixels, short_side=options.short_side, token=token)
    if not examples:
        raise SystemExit("found nothing to train on")
    batches = Batches(examples, read, options.tokens, token)
    loader = DataLoader(batches, batch_size=None, num_workers=options.workers)
    scaling = model.scaling or measured(codec, batches)
    size = Size(sizes.channels * MERGE**2, options.width, options.depth)
    network = Transformer(size).to(codec.device)
    average = train(network, loader, codec, scaling, options)
    state = average.state() | {"scaling": scaling, "codec": options.weights}
    torch.save(state, options.out)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, help="images, with captions in .txt files beside them")
    parser.add_argument("--out", type=Path, required=True, help="the file to save the network to")
    parser.add_argument("--latents", type=Path, help="what `stae encode PHOTOS LATENTS` wrote")
    parser.add_argument("--weights", default="builtin", help="the autoencoder")
    parser.add_argument("--short-side", type=int, default=128, help="pixels, on the fly")
    parser.add_argument("--tokens", type=int, default=2048, help="in a batch")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="at most")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0, help="processes that read files")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def encoded(pictures: list[Tensor], codec: Codec) -> list[Tensor]:
    """Latents on the codec's device: pixels are encoded, what is a latent already is moved."""
    pictures = [picture.to(codec.device, non_blocking=True) for picture in pictures]
    return codec.encode(pictures) if pictures[0].dtype == torch.uint8 else pictures


def measured(codec: Codec, batches: Batches) -> tuple[float, float]:
    """Shift and scale of latents, for a checkpoint that does not record them."""
    latents = [z.flatten() for p, _ in islice(batches, 4) for z in encoded(p, codec)]
    values = torch.cat(latents).float()
    return values.mean().item(), 1 / values.std().item()


def train(
    network: Transformer,
    loader: DataLoader,
    codec: Codec,
    scaling: tuple[float, float],
    options: argparse.Namespace,
) -> Transformer:
    """Runs the steps, printing the loss every 20; returns the average of the last weights."""
    optimizer = torch.optim.AdamW(network.parameters(), options.lr, betas=(0.9, 0.99))
    average = AveragedModel(network, avg_fn=drawn_closer)
    started, losses, seen = time.monotonic(), [], 0
    for step, (pictures, captions) in enumerate(islice(loader, options.steps), 1):
        loss = loss_of(network, merged(encoded(pictures, codec)), captions, scaling)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        share = max(step / options.steps, (time.monotonic() - started) / 60 / options.minutes)
        for group in optimizer.param_groups:  # rises, then falls along a line
            group["lr"] = options.lr * min(step / WARM_UP, max(1 - share, 0.01))
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(network)
        losses.append(loss.detach())
        seen += len(pictures)
        if step % 20 == 0 or step == options.steps:
            mean = torch.stack(losses).mean().item()
            speed = seen / (time.monotonic() - started)
            print(f"step {step}, loss {mean:.4f}, {speed:.1f} pictures/s", flush=True)
            losses.clear()
        if share >= 1:
            break
    return average.module


def drawn_closer(average: Tensor, now: Tensor, count: Tensor) -> Tensor:
    """A moving average over some 500 steps, or over the last half of fewer."""
    return average.lerp(now, max(0.002, 2 / (count.item() + 2)))


def loss_of(
    network: Transformer,
    packed: PackedLatents,
    captions: list[str],
    scaling: tuple[float, float],
) -> Tensor:
    """Flow matching: the mean squared error of the velocity, at a random time for each picture."""
    shift, scale = scaling
    clean = (packed.tokens.float() - shift) * scale
    noise = torch.randn_like(clean)
    times = torch.randn(len(captions), device=clean.device).sigmoid()  # mostly in the middle
    counts = torch.tensor(packed.counts).to(clean.device)
    mixture = times.repeat_interleave(counts, output_size=len(clean))[:, None]
    noisy = PackedLatents(torch.lerp(clean, noise, mixture), packed.sizes)
    kept = ["" if torch.rand(()) < DROPPED else caption for caption in captions]
    with torch.autocast(clean.device.type, torch.bfloat16, enabled=clean.is_cuda):
        velocity = network(noisy, times, kept)
    return mse_loss(velocity, noise - clean)


if __name__ == "__main__":
    main()
